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
//     B         [width / kBlockB, rank / 2, kBlockB columns, 2 ranks]; a scale for every kBlockB columns
//
// What A makes of a row is rounded to 16 bits, with a scale for each projection, so that B multiplies whole numbers too.

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
constexpr size_t kBlockB = 16;       // columns that share a scale of B
constexpr size_t kPairs = 256;       // pairs of ranks whose products 32 bits hold the sum of

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

  size_t groups() const { return n / kColumns; }
};

// Up to kTile rows of quantized activations: `values` [k / 32, kTile, 32], of each run its scale and its scale times
// the sum of its values.
struct Tile {
  int8_t* values;
  float* scales;  // [k / 32, kTile]
  float* sums;    // [k / 32, kTile]
};

// One projection of an adapter. In memory the layers follow one another as they run: all of a layer's A with its scales
// and B's, then all of its B. One more than the projections says where that ends.
struct Projection {
  const int8_t* a;
  const float* a_scales;
  const float* b_scales;
  const int8_t* b;
  int64_t rank;
};

// Memory that will be wanted soon. It is asked for a few lines at a time, because a CPU drops many that come at once.
class Ahead {
 public:
  void Add(const void* from, size_t bytes) {
    if (bytes == 0 || count_ == kMost) return;
    pieces_[count_++] = {static_cast<const char*>(from), (bytes + kLine - 1) / kLine};
    left_ += pieces_[count_ - 1].lines;
  }
  // Spread what was added over so many calls of Ask.
  void Spread(size_t calls) { each_ = (left_ + calls - 1) / calls; }
  void Ask() {
    for (size_t wanted = std::min(each_, left_); wanted != 0;) {
      Piece& piece = pieces_[at_];
      const size_t some = std::min(wanted, piece.lines);
      for (size_t i = 0; i < some; ++i, piece.from += kLine) _mm_prefetch(piece.from, _MM_HINT_T1);
      if ((piece.lines -= some) == 0) ++at_;
      wanted -= some;
      left_ -= some;
    }
  }

 private:
  static constexpr size_t kMost = 128, kLine = 64;
  struct Piece {
    const char* from;
    size_t lines;
  };
  Piece pieces_[kMost];
  size_t count_ = 0, at_ = 0, left_ = 0, each_ = 0;
};

// Bring the columns of a group from MatMulNBits' layout, [n, k / block, block / 2].
inline void PackGroup(const Weights& w, size_t group, const uint8_t* source, const float* scales,
                      const uint8_t* zeros) {
  const size_t blocks = w.k / w.block, zero_bytes = (blocks + 1) / 2;
  for (size_t column = 0; column < kColumns; ++column) {
    const size_t n = group * kColumns + column;
    const uint8_t* from = source + n * (w.k / 2);
    for (size_t b = 0; b < blocks; ++b) {
      const size_t at = (group * blocks + b) * kColumns + column;
      w.scales[at] = scales[n * blocks + b];
      w.zeros[at] = zeros == nullptr ? 8 : (zeros[n * zero_bytes + b / 2] >> (b % 2 * 4)) & 15;
    }
    for (size_t run = 0; run < w.k / kRun; ++run) {
      uint8_t* to = w.data + (group * (w.k / kRun) + run) * kRunBytes + column * 4;
      const uint8_t* run_from = from + run * (kRun / 2);
      auto value = [&](size_t k) { return (run_from[k / 2] >> (k % 2 * 4)) & 15; };
      for (size_t j = 0; j < 4; ++j)
        for (size_t i = 0; i < 4; ++i)
          to[j * 4 * kColumns + i] = uint8_t(value(4 * j + i) | value(16 + 4 * j + i) << 4);
    }
  }
}

// Round what A makes of a row, [rank], to pairs of 16 bits that are kTile apart; their scale, NaN if one is not finite.
inline float Round(const float* down, size_t rank, int32_t* pairs) {
  float largest = 0, odd = 0;
  for (size_t r = 0; r < rank; ++r) {
    largest = std::max(largest, std::fabs(down[r]));
    odd += down[r] * 0.0f;
  }
  const __m256 inverse = _mm256_set1_ps(largest > 0 ? 32767.0f / largest : 0.0f);
  for (size_t r = 0; r < rank; r += kRanks) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(down + r), inverse));
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    int32_t some[kRanks / 2];
    std::memcpy(some, &packed, sizeof some);
    for (size_t i = 0; i < kRanks / 2; ++i) pairs[(r / 2 + i) * kTile] = some[i];
  }
  return largest / 32767.0f + odd;
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
