// What linear_call.h computes with: 4-bit weights, 8-bit activations, 8-bit adapters, and how they lie in memory.
//
// The arithmetic is in linear_avx512.h where the compiler may use AVX-512 with VNNI, otherwise in linear_avx2.h. Every
// value of a result is computed in the same order whatever rows it is computed with.
//
// Weights are 4-bit, in blocks along K with a scale and a zero point each, as in onnxruntime's MatMulNBits. They are
// kept in groups of kColumns columns. Of every 32 values of K a group has 16 bytes a column in 4 vectors: vector j has
// in its low nibbles the values 4j .. 4j+3 of K, 4 bytes a column, and in its high nibbles the values 4j+16 .. 4j+19.
//
// Activations are quantized to 8 bits in runs of 32, each with a scale of its own.
//
// An adapter's A [K, rank] and B [rank, width] have 8 bits; ranks are a multiple of 8, filled up with zeros.
//
//     A         [rank / 8, K / 8, 8 ranks, 8 of K]; a scale for every kBlockA of K and rank: [K / kBlockA, rank]
//     B         [width / kBlockB], each a scale for every rank and then [rank, kBlockB columns], the last one narrower

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace loraplex {

constexpr size_t kRun = 32;          // values of K that share a scale of the activations
constexpr size_t kRanks = 8;         // ranks that lie together
constexpr size_t kBlockA = 128;      // values of K that share a scale of A; what is added up at once is a multiple
constexpr size_t kBlockB = 64;       // columns that share a scale of B

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
constexpr size_t kColumns = 16;      // columns of a group
constexpr size_t kTile = 8;          // rows of activations that are kept together
#else
constexpr size_t kColumns = 8;
constexpr size_t kTile = 4;
#endif
constexpr size_t kRunBytes = 16 * kColumns;

struct Weights {
  size_t k, n, block;
  uint8_t* data;    // [groups, k / 32, kRunBytes]
  float* scales;    // [groups, k / block, kColumns]
  uint8_t* zeros;   // [groups, k / block, kColumns]

  size_t groups() const { return (n + kColumns - 1) / kColumns; }
};

// Up to kTile rows of quantized activations: `values` [k / 32, kTile, 32], of each run its scale and its scale times
// the sum of its values.
struct Tile {
  int8_t* values;
  float* scales;  // [k / 32, kTile]
  float* sums;    // [k / 32, kTile]
};

// One projection of an adapter.
struct Projection {
  const int8_t* a;
  const float* a_scales;
  const int8_t* b;
  int64_t rank;
};

// Bring the columns of a group from MatMulNBits' layout, [n, k / block, block / 2]; what lies behind n is zero.
inline void PackGroup(const Weights& w, size_t group, const uint8_t* source, const float* scales,
                      const uint8_t* zeros) {
  const size_t blocks = w.k / w.block, zero_bytes = (blocks + 1) / 2;
  for (size_t column = 0; column < kColumns; ++column) {
    const size_t n = group * kColumns + column;
    const bool empty = n >= w.n;
    const uint8_t* from = source + (empty ? 0 : n) * (w.k / 2);
    for (size_t b = 0; b < blocks; ++b) {
      const size_t at = (group * blocks + b) * kColumns + column;
      w.scales[at] = empty ? 0.0f : scales[n * blocks + b];
      w.zeros[at] = empty || zeros == nullptr ? 8 : (zeros[n * zero_bytes + b / 2] >> (b % 2 * 4)) & 15;
    }
    for (size_t run = 0; run < w.k / kRun; ++run) {
      uint8_t* to = w.data + (group * (w.k / kRun) + run) * kRunBytes + column * 4;
      const uint8_t* run_from = from + run * (kRun / 2);
      auto value = [&](size_t k) { return empty ? 0 : (run_from[k / 2] >> (k % 2 * 4)) & 15; };
      for (size_t j = 0; j < 4; ++j)
        for (size_t i = 0; i < 4; ++i)
          to[j * 4 * kColumns + i] = uint8_t(value(4 * j + i) | value(16 + 4 * j + i) << 4);
    }
  }
}

template <typename T>
inline T Read(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace loraplex

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "linear_avx512.h"
#else
#include "linear_avx2.h"
#endif
