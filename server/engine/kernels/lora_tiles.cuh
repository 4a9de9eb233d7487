// Tiles: up to kTile rows of one adapter each, which is how the kernels of lora_kernels.cuh take the rows of a step. Those
// that there are come first in the list.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

constexpr int kMaxSlots = 2048;  // the base's among them
constexpr int kTile = 16;
constexpr int kCutThreads = 1024;

// Some rows of one adapter. An empty tile has a count of 0; rows from `count` on are of no matter, but exist.
struct Tile {
  int slot, count, row[kTile];
};

// As many as there can be for so many rows, of the base and `slots` adapters.
__host__ __device__ inline int MostTiles(int rows, int slots) {
  const int adapters = rows < slots + 1 ? rows : slots + 1;
  return (rows + adapters * (kTile - 1)) / kTile;
}

// One block. `count` is that of the slots, the base's among them.
__global__ void Cut(const __half* __restrict__ slots, Tile* __restrict__ tiles, int rows, int count, int most_tiles) {
  __shared__ int2 ends[kMaxSlots];  // up to each slot: rows, tiles
  __shared__ int next[kMaxSlots];
  const auto slot_of = [&](int row) { return min(max(__half2int_rn(slots[row]), 0), count - 1); };
  for (int slot = threadIdx.x; slot < count; slot += kCutThreads) next[slot] = 0;
  for (int at = threadIdx.x; at < most_tiles * int(sizeof(Tile) / sizeof(int)); at += kCutThreads)
    reinterpret_cast<int*>(tiles)[at] = 0;
  __syncthreads();
  for (int row = threadIdx.x; row < rows; row += kCutThreads) atomicAdd(&next[slot_of(row)], 1);
  __syncthreads();
  for (int slot = threadIdx.x; slot < count; slot += kCutThreads)
    ends[slot] = make_int2(next[slot], (next[slot] + kTile - 1) / kTile);
  __syncthreads();
  for (int step = 1; step < count; step *= 2) {
    int2 sum[kMaxSlots / kCutThreads];
#pragma unroll
    for (int e = 0; e < kMaxSlots / kCutThreads; ++e) {
      const int slot = threadIdx.x + e * kCutThreads;
      if (slot >= count) continue;
      const int2 before = slot >= step ? ends[slot - step] : make_int2(0, 0);
      sum[e] = make_int2(ends[slot].x + before.x, ends[slot].y + before.y);
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kMaxSlots / kCutThreads; ++e)
      if (const int slot = threadIdx.x + e * kCutThreads; slot < count) ends[slot] = sum[e];
    __syncthreads();
  }
  for (int slot = threadIdx.x; slot < count; slot += kCutThreads) {
    next[slot] = 0;
    const int2 start = slot ? ends[slot - 1] : make_int2(0, 0);
    int left = ends[slot].x - start.x;
    for (int tile = start.y; left > 0; ++tile, left -= kTile) {
      tiles[tile].slot = slot;
      tiles[tile].count = min(left, kTile);
    }
  }
  __syncthreads();
  for (int row = threadIdx.x; row < rows; row += kCutThreads) {
    const int slot = slot_of(row), place = atomicAdd(&next[slot], 1);
    tiles[(slot ? ends[slot - 1].y : 0) + place / kTile].row[place % kTile] = row;
  }
}

}  // namespace
