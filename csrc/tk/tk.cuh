// Tile primitives for sm_90a. A kernel includes this and nothing else.
//   nouns  rt rv (registers of a warp)   st sv (shared)   gl (global, by TMA)   view vec_view tensor (global, masked)
//   verbs  load store | mma_AB mma_ABt mma_AtB mma_AtBt | copy transpose swap_layout | map add mul exp2 .. |
//          row_sum col_max .. | row_cumsum .. | mask_causal ..
//   order  mbarrier: init arrive arrive_expect wait | mma_fence mma_commit mma_wait | publish_tile commit_stores ..
#pragma once

#include "complex.cuh"
#include "global_memory.cuh"
#include "mask.cuh"
#include "mma.cuh"
#include "pipeline.cuh"
#include "reduce.cuh"
#include "scan.cuh"
#include "shared_memory.cuh"
#include "tma.cuh"
