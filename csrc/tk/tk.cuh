// Tile primitives for sm_90a. A kernel includes this and nothing else.
//   nouns  rt (registers of a warp)   rv (register vector)   st (shared)   gl (global, by TMA)   view (global, masked)
//   verbs  load store | mma_AB mma_ABt mma_AtB mma_AtBt | zero fill map add mul exp2 copy | row_max row_sum ..
//   order  mbarrier: init arrive arrive_expect wait | mma_fence mma_commit mma_wait | publish_tile commit_stores ..
#pragma once

#include "mma.cuh"
#include "memory.cuh"
#include "ops.cuh"
#include "tma.cuh"
