// The kernels of lora.cu, which says what they compute.
//
// How many tiles there are only the GPU knows, so blocks take one after the other until they meet an empty one. Both
// products go through tensor cores (mma m16n8k16): the rows of a tile by eight ranks or by eight columns at a time. A
// thread loads sixteen bytes from where the numbers lie, and which of them takes which place in an mma is free as long
// as both factors agree.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "lora_tiles.cuh"

namespace {

constexpr int kMaxModules = 4;
constexpr int kExpandWarps = 2;
constexpr int kWarpColumns = 64;  // that a warp expands
constexpr int kRankStep = 16;     // ranks of an mma that expands

// The next kernel of the stream may begin; the writes of the one before are visible. Nothing to do where kernels do not
// overlap.
__device__ void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

struct Widths {
  int count;
  int end[kMaxModules];
};

__device__ uint4 LoadEight(const __half* address, bool there = true) {
  return there ? *reinterpret_cast<const uint4*>(address) : make_uint4(0, 0, 0, 0);
}

// Past L1, since it is written while this kernel runs.
__device__ uint32_t LoadTwo(const __half* address) { return __ldcg(reinterpret_cast<const unsigned int*>(address)); }

// c [16, 8] += a [16, 16] * b [16, 8], spread over the threads of a warp as the PTX manual shows.
__device__ void MultiplyAdd(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// One block: eight ranks against some of the tiles. The warps share out K and add up.
template <int Warps>
__global__ void __launch_bounds__(Warps * 32)
    Shrink(const __half* __restrict__ x, const Tile* __restrict__ tiles, const __half* __restrict__ a,
           __half* __restrict__ scratch, int k, int ranks, int most_tiles) {
  LetNextBegin();
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, part = threadIdx.x % 4, rank = blockIdx.x * 8;
  __shared__ float partial[Warps][kTile][8];
  for (int at_tile = blockIdx.y; at_tile < most_tiles; at_tile += gridDim.y) {
    const Tile& tile = tiles[at_tile];
    const int count = tile.count, slot = tile.slot;
    const __half* upper = x + size_t(tile.row[group]) * k;
    const __half* lower = x + size_t(tile.row[group + 8]) * k;
    if (count == 0) return;
    if (slot == 0) continue;
    const __half* weights = a + (size_t(slot - 1) * ranks + rank + group) * k;
    float sum[4] = {};
#pragma unroll 4
    for (int start = warp * 32; start < k; start += Warps * 32) {
      const int at = start + part * 8;
      const uint4 u = LoadEight(upper + at, at < k), l = LoadEight(lower + at, at < k && count > 8);
      const uint4 w = LoadEight(weights + at, at < k);
      MultiplyAdd(sum, u.x, l.x, u.y, l.y, w.x, w.y);
      MultiplyAdd(sum, u.z, l.z, u.w, l.w, w.z, w.w);
    }
    *reinterpret_cast<float2*>(&partial[warp][group][part * 2]) = make_float2(sum[0], sum[1]);
    *reinterpret_cast<float2*>(&partial[warp][group + 8][part * 2]) = make_float2(sum[2], sum[3]);
    __syncthreads();
    for (int at = threadIdx.x; at < count * 8; at += Warps * 32) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < Warps; ++w) total += partial[w][at / 8][at % 8];
      scratch[size_t(tile.row[at / 8]) * ranks + rank + at % 8] = __float2half_rn(total);
    }
    __syncthreads();
  }
}

// What a thread of a warp that expands has of one tile: of row `group` and of row `group + 8` the sixteen columns from
// `part * 16` on.
struct Patch {
  uint4 bits[2][2];    // [row][eight columns], as loaded
  float sum[8][4];     // [column of eight][row * 2 + eight columns], as the mma has it

  __device__ void Load(int row, const __half* address, int columns, bool there) {
#pragma unroll
    for (int side = 0; side < 2; ++side) bits[row][side] = LoadEight(address + side * 8, there && columns > side * 8);
  }

  __device__ void Begin() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto* pairs = reinterpret_cast<const __half2*>(&bits[i / 2][i % 2]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = __half22float2(pairs[j]);
        sum[2 * j][i] = pair.x;
        sum[2 * j + 1][i] = pair.y;
      }
    }
  }

  __device__ void Store(int row, __half* address, int columns) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (columns <= side * 8) break;
      uint4 out;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        reinterpret_cast<__half2*>(&out)[j] =
            __floats2half2_rn(sum[2 * j][row * 2 + side], sum[2 * j + 1][row * 2 + side]);
      *reinterpret_cast<uint4*>(address + side * 8) = out;
    }
  }
};

// Both factors of kRankStep ranks: of B a thread has eight columns of four ranks, of the scratch two rows of the same.
struct Step {
  uint4 b[4];
  uint32_t a[4];

  // `address` is the first rank's row of B at the thread's own eight columns, if they are `there`; `left` ranks.
  __device__ void LoadB(const __half* address, size_t stride, int part, int left, bool there) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int rank = part * 2 + i % 2 + i / 2 * 8;
      b[i] = LoadEight(address + rank * stride, there && rank < left);
    }
  }

  // `upper` and `lower` are the rows of the scratch from the first rank on.
  __device__ void LoadA(const __half* upper, const __half* lower, int part, int left) {
    a[0] = LoadTwo(upper + part * 2);
    a[1] = LoadTwo(lower + part * 2);
    a[2] = left > 8 ? LoadTwo(upper + part * 2 + 8) : 0;
    a[3] = left > 8 ? LoadTwo(lower + part * 2 + 8) : 0;
  }

  __device__ void Add(Patch& patch) const {
    const auto word = [this](int i, int j) { return reinterpret_cast<const uint32_t*>(&b[i])[j / 2]; };
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t halves = j % 2 ? 0x7632 : 0x5410;
      MultiplyAdd(patch.sum[j], a[0], a[1], a[2], a[3], __byte_perm(word(0, j), word(1, j), halves),
                  __byte_perm(word(2, j), word(3, j), halves));
    }
  }
};

// One warp: kWarpColumns columns of some of the tiles of y, which holds the base's output.
__global__ void __launch_bounds__(kExpandWarps * 32)
    Expand(const __half* __restrict__ scratch, const Tile* __restrict__ tiles, const __half* __restrict__ b,
           __half* __restrict__ y, int n, int module_ranks, int most_tiles, Widths widths) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
  const int column = (blockIdx.x * kExpandWarps + warp) * kWarpColumns;
  const int own = column + part * 16, place = column + group * 8, ranks = module_ranks * widths.count;
  for (int at_tile = blockIdx.y; column < n && at_tile < most_tiles; at_tile += gridDim.y) {
    const Tile& tile = tiles[at_tile];
    const int count = tile.count, slot = tile.slot;
    const int upper = tile.row[group], lower = tile.row[group + 8];
    if (count == 0) break;
    if (slot == 0) continue;
    int module = 0, begin = 0;
    while (column >= widths.end[module]) begin = widths.end[module++];
    const __half* weights = b + size_t(slot - 1) * module_ranks * n + place;
    Step step;
    step.LoadB(weights, n, part, module_ranks, place < widths.end[module]);
    WaitForPrevious();
    Patch patch;
    patch.Load(0, y + size_t(upper) * n + own, n - own, group < count);
    patch.Load(1, y + size_t(lower) * n + own, n - own, group + 8 < count);
    const auto load_a = [&](int start) {
      const __half* from = scratch + module * module_ranks + start;
      step.LoadA(from + size_t(upper) * ranks, from + size_t(lower) * ranks, part, module_ranks - start);
    };
    load_a(0);
    patch.Begin();
    step.Add(patch);
    for (int start = kRankStep;; start += kRankStep) {
      if (start >= module_ranks) {
        begin = widths.end[module++];
        if (module == widths.count || begin >= column + kWarpColumns) break;
        start = 0;
      }
      load_a(start);
      step.LoadB(weights + size_t(start) * n, n, part, module_ranks - start,
                 place >= begin && place < widths.end[module]);
      step.Add(patch);
    }
    if (group < count) patch.Store(0, y + size_t(upper) * n + own, n - own);
    if (group + 8 < count) patch.Store(1, y + size_t(lower) * n + own, n - own);
  }
  WaitForPrevious();
}

// One warp: kWarpColumns columns of some of the tiles of the gate, and the same of up; `half` is N / 2.
__global__ void __launch_bounds__(kExpandWarps * 32)
    ExpandGated(const __half* __restrict__ scratch, const Tile* __restrict__ tiles, const __half* __restrict__ b,
                const __half* __restrict__ base, __half* __restrict__ y, int half, int module_ranks, int most_tiles) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
  const int column = (blockIdx.x * kExpandWarps + warp) * kWarpColumns;
  const int own = column + part * 16, place = column + group * 8;
  for (int at_tile = blockIdx.y; column < half && at_tile < most_tiles; at_tile += gridDim.y) {
    const Tile& tile = tiles[at_tile];
    const int count = tile.count, slot = tile.slot;
    const int upper = tile.row[group], lower = tile.row[group + 8];
    if (count == 0) break;
    const __half* weights = b + size_t(max(slot, 1) - 1) * module_ranks * 2 * half + place;
    Step step[2];
    Patch patch[2];
#pragma unroll
    for (int module = 0; module < 2; ++module) {
      step[module].LoadB(weights + module * half, 2 * half, part, module_ranks, slot && place < half);
    }
    WaitForPrevious();
#pragma unroll
    for (int module = 0; module < 2; ++module) {
      patch[module].Load(0, base + (size_t(upper) * 2 + module) * half + own, half - own, group < count);
      patch[module].Load(1, base + (size_t(lower) * 2 + module) * half + own, half - own, group + 8 < count);
    }
    const auto load_a = [&](int module, int start) {
      const __half* from = scratch + module * module_ranks + start;
      step[module].LoadA(from + size_t(upper) * 2 * module_ranks, from + size_t(lower) * 2 * module_ranks, part,
                         module_ranks - start);
    };
#pragma unroll
    for (int module = 0; module < 2; ++module) {
      if (slot) load_a(module, 0);
      patch[module].Begin();
    }
    for (int start = 0; slot && start < module_ranks; start += kRankStep) {
#pragma unroll
      for (int module = 0; module < 2; ++module) {
        if (start) {
          load_a(module, start);
          step[module].LoadB(weights + (size_t(start) * 2 + module) * half, 2 * half, part, module_ranks - start,
                             place < half);
        }
        step[module].Add(patch[module]);
      }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float gate = patch[0].sum[j][i];
        patch[0].sum[j][i] = gate / (1 + __expf(-gate)) * patch[1].sum[j][i];
      }
    }
    if (group < count) patch[0].Store(0, y + size_t(upper) * half + own, half - own);
    if (group + 8 < count) patch[0].Store(1, y + size_t(lower) * half + own, half - own);
  }
  WaitForPrevious();
}

}  // namespace
