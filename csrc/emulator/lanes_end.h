// The end of a file that began with lanes.h: clang wants its attribute taken back in the file that it holds for.
#if defined(TK_ISA_V3) && defined(__clang__)
#pragma clang attribute pop
#endif
