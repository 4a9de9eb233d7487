// The kernels of lora.cu, which says what they compute.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

constexpr int kMaxModules = 4;
constexpr int kFewRows = 32;
constexpr int kDecodeRows = 128;  // up to here a step is taken for decoding: latency counts, not traffic
constexpr int kShrinkThreads = 128;
constexpr int kExpandThreads = 64;  // eight columns each
constexpr int kRankStep = 16;       // ranks of B held in registers at a time

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

// Eight float16 numbers, loaded at once.
struct Eight {
  uint4 bits;

  __device__ float2 Pair(int j) const { return __half22float2(reinterpret_cast<const __half2*>(&bits)[j]); }
};

__device__ Eight LoadEight(const __half* address) { return {*reinterpret_cast<const uint4*>(address)}; }

__device__ float Dot(const Eight& a, const Eight& b) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 v = a.Pair(j), w = b.Pair(j);
    sum += v.x * w.x + v.y * w.y;
  }
  return sum;
}

__global__ void Order(const __half* __restrict__ slots, int* __restrict__ order, int* __restrict__ sorted, int rows) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const int slot = __half2int_rn(slots[row]);
  int place = 0;
  for (int other = 0; other < rows; ++other) {
    const int theirs = __half2int_rn(slots[other]);
    place += theirs < slot || (theirs == slot && other < row);
  }
  order[place] = row;
  sorted[place] = slot;
}

// One block: one rank against Rows neighbours in `order`; the threads share out K.
template <int Rows>
__global__ void ShrinkFew(const __half* __restrict__ x, const int* __restrict__ order, const int* __restrict__ sorted,
                          const __half* __restrict__ a, float* __restrict__ scratch, int rows, int k) {
  LetNextBegin();
  __shared__ float partial[kShrinkThreads / 32][Rows];
  const int rank = blockIdx.x, ranks = gridDim.x, first = blockIdx.y * Rows;
  int row[Rows], slot[Rows];
  bool same = true;
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    row[i] = order[min(first + i, rows - 1)];
    slot[i] = sorted[min(first + i, rows - 1)];
    same = same && slot[i] == slot[0];
  }
  if (slot[Rows - 1] == 0) return;
  float sum[Rows] = {};
  if (same) {
    const __half* weights = a + (size_t(slot[0] - 1) * ranks + rank) * k;
#pragma unroll 4
    for (int at = threadIdx.x * 8; at < k; at += kShrinkThreads * 8) {
      const Eight weight = LoadEight(weights + at);
#pragma unroll
      for (int i = 0; i < Rows; ++i) sum[i] += Dot(LoadEight(x + size_t(row[i]) * k + at), weight);
    }
  } else {
#pragma unroll 2
    for (int at = threadIdx.x * 8; at < k; at += kShrinkThreads * 8) {
#pragma unroll
      for (int i = 0; i < Rows; ++i) {
        const size_t own = size_t(max(slot[i], 1) - 1) * ranks + rank;
        sum[i] += Dot(LoadEight(x + size_t(row[i]) * k + at), LoadEight(a + own * k + at));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][i] = sum[i];
  }
  __syncthreads();
  if (threadIdx.x < Rows && first + threadIdx.x < rows) {
    float total = 0;
    for (int warp = 0; warp < kShrinkThreads / 32; ++warp) total += partial[warp][threadIdx.x];
    scratch[size_t(order[first + threadIdx.x]) * ranks + rank] = total;
  }
}

// One warp: one rank against eight neighbours in `order`. The eight ranks of a block read the same rows.
__global__ void ShrinkMany(const __half* __restrict__ x, const int* __restrict__ order, const int* __restrict__ sorted,
                           const __half* __restrict__ a, float* __restrict__ scratch, int rows, int k, int ranks) {
  constexpr int Rows = 8;
  LetNextBegin();
  const int rank = blockIdx.x * blockDim.y + threadIdx.y, first = blockIdx.y * Rows;
  if (rank >= ranks) return;
  int row[Rows], slot[Rows];
  bool same = true;
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    row[i] = order[min(first + i, rows - 1)];
    slot[i] = sorted[min(first + i, rows - 1)];
    same = same && slot[i] == slot[0];
  }
  if (slot[Rows - 1] == 0) return;
  float sum[Rows] = {};
  for (int at = threadIdx.x * 8; at < k; at += 32 * 8) {
    Eight weight = LoadEight(a + (size_t(max(slot[0], 1) - 1) * ranks + rank) * k + at);
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      if (!same) weight = LoadEight(a + (size_t(max(slot[i], 1) - 1) * ranks + rank) * k + at);
      sum[i] += Dot(LoadEight(x + size_t(row[i]) * k + at), weight);
    }
  }
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    if (threadIdx.x == 0 && first + i < rows) scratch[size_t(row[i]) * ranks + rank] = sum[i];
  }
}

// One block: kExpandThreads * 8 columns of Rows neighbours in `order`, with B loaded again only where the slot changes.
template <int Rows>
__global__ void Expand(const float* __restrict__ scratch, const int* __restrict__ order, const int* __restrict__ sorted,
                       const __half* __restrict__ b, __half* __restrict__ y, int rows, int n, int module_ranks,
                       Widths widths) {
  constexpr int kGroup = Rows < 4 ? Rows : 4;  // rows of y on their way at a time
  const int column = (blockIdx.x * kExpandThreads + threadIdx.x) * 8;
  const int first = blockIdx.y * Rows, end = min(first + Rows, rows);
  if (column >= n || sorted[end - 1] == 0) {
    WaitForPrevious();
    return;
  }
  int module = 0;
  while (module + 1 < widths.count && column >= widths.end[module]) ++module;
  const int ranks = module_ranks * widths.count;
  bool waited = false;
  for (int start = 0; start < module_ranks; start += kRankStep) {
    Eight weight[kRankStep];
    int loaded = 0;
    for (int group = first; group < end; group += kGroup) {
      Eight values[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const int row = order[min(group + i, end - 1)];
        values[i] = LoadEight(y + size_t(row) * n + column);
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const int at = group + i;
        if (at >= end) break;
        const int slot = sorted[at], row = order[at];
        if (slot == 0) continue;
        if (slot != loaded) {
          loaded = slot;
#pragma unroll
          for (int r = 0; r < kRankStep; ++r) {
            weight[r] = {};
            if (start + r < module_ranks)
              weight[r] = LoadEight(b + (size_t(slot - 1) * module_ranks + start + r) * n + column);
          }
        }
        Eight value = values[i];
        if (!waited) {
          WaitForPrevious();
          waited = true;
        }
        const auto* down =
            reinterpret_cast<const float4*>(scratch + size_t(row) * ranks + module * module_ranks + start);
        float2 sum[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] = value.Pair(j);
#pragma unroll
        for (int q = 0; q < kRankStep / 4; ++q) {
          if (start + q * 4 >= module_ranks) break;
          const float4 four = __ldcg(down + q);  // past L1, since it is written while this kernel runs
          const float scale[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float2 w = weight[q * 4 + r].Pair(j);
              sum[j].x += scale[r] * w.x;
              sum[j].y += scale[r] * w.y;
            }
          }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) reinterpret_cast<__half2*>(&value.bits)[j] = __float22half2_rn(sum[j]);
        *reinterpret_cast<uint4*>(y + size_t(row) * n + column) = value.bits;
      }
    }
  }
}

// One block: kExpandThreads * 8 columns of the gate, and the same of up, of Rows neighbours in `order`; `half` is N / 2.
template <int Rows>
__global__ void ExpandGated(const float* __restrict__ scratch, const int* __restrict__ order,
                            const int* __restrict__ sorted, const __half* __restrict__ b,
                            const __half* __restrict__ base, __half* __restrict__ y, int rows, int half,
                            int module_ranks) {
  const int column = (blockIdx.x * kExpandThreads + threadIdx.x) * 8;
  const int first = blockIdx.y * Rows, end = min(first + Rows, rows);
  if (column >= half) {
    WaitForPrevious();
    return;
  }
  Eight weight[2][kRankStep];
  int loaded = 0;
  bool waited = false;
  for (int at = first; at < end; ++at) {
    const int slot = sorted[at], row = order[at];
    float2 sum[2][4];
#pragma unroll
    for (int module = 0; module < 2; ++module) {
      const Eight value = LoadEight(base + (size_t(row) * 2 + module) * half + column);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[module][j] = value.Pair(j);
    }
    for (int start = 0; slot != 0 && start < module_ranks; start += kRankStep) {
      if (slot != loaded || module_ranks > kRankStep) {
        loaded = slot;
#pragma unroll
        for (int r = 0; r < kRankStep; ++r) {
#pragma unroll
          for (int module = 0; module < 2; ++module) {
            weight[module][r] = {};
            if (start + r < module_ranks)
              weight[module][r] =
                  LoadEight(b + ((size_t(slot - 1) * module_ranks + start + r) * 2 + module) * half + column);
          }
        }
      }
      if (!waited) {
        WaitForPrevious();
        waited = true;
      }
#pragma unroll
      for (int module = 0; module < 2; ++module) {
        const auto* down =
            reinterpret_cast<const float4*>(scratch + (size_t(row) * 2 + module) * module_ranks + start);
#pragma unroll
        for (int q = 0; q < kRankStep / 4; ++q) {
          if (start + q * 4 >= module_ranks) break;
          const float4 four = __ldcg(down + q);  // past L1, since it is written while this kernel runs
          const float scale[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float2 w = weight[module][q * 4 + r].Pair(j);
              sum[module][j].x += scale[r] * w.x;
              sum[module][j].y += scale[r] * w.y;
            }
          }
        }
      }
    }
    Eight out;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 gate = sum[0][j], up = sum[1][j];
      reinterpret_cast<__half2*>(&out.bits)[j] = __float22half2_rn(
          make_float2(gate.x / (1 + __expf(-gate.x)) * up.x, gate.y / (1 + __expf(-gate.y)) * up.y));
    }
    *reinterpret_cast<uint4*>(y + size_t(row) * half + column) = out.bits;
  }
  if (!waited) WaitForPrevious();
}

}  // namespace
