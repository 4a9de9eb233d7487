// The arithmetic of linear.cpp, for x86-64 with AVX2, FMA, F16C and no instructions for 8-bit dot products.
//
// Weights are 4-bit, in blocks along K with a scale and a zero point each, as in onnxruntime's MatMulNBits. They are
// kept in groups of 8 columns. Of every 32 values of K a group has 128 bytes: 4 vectors, of which vector j has in its
// low nibbles the values 4j .. 4j+3 of K, 4 bytes a column, and in its high nibbles the values 4j+16 .. 4j+19.
//
// Activations are quantized to 8 bits in runs of 32. A product of 32 values is exact: 8 products of pairs, each at most
// 2 * 15 * 127, fit 16 bits. Every value of a result is computed in the same order whatever rows it is computed with.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace loraplex {

constexpr size_t kRun = 32;          // values of K that share a scale of the activations
constexpr size_t kColumns = 8;       // columns of a group
constexpr size_t kRunBytes = 128;    // of a group
constexpr size_t kTile = 4;          // rows of activations that are kept together
constexpr size_t kChunk = 512;       // values of K that are added up at once for A, so that their order is fixed

struct Weights {
  size_t k, n, block;
  uint8_t* data;    // [n / 8, k / 32, 128]
  float* scales;    // [n / 8, k / block, 8]
  uint8_t* zeros;   // [n / 8, k / block, 8]
};

// Up to kTile rows of quantized activations: `values` [k / 32, kTile, 32], of each run its scale and its scale times
// the sum of its values.
struct Tile {
  int8_t* values;
  float* scales;  // [k / 32, kTile]
  float* sums;    // [k / 32, kTile]
};

// Bring columns first .. first + 8 from MatMulNBits' layout, [n, k / block, block / 2], into a group's.
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
          to[j * 32 + i] = uint8_t(value(4 * j + i) | value(16 + 4 * j + i) << 4);
    }
  }
}

inline float Largest(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

// Quantize x [k] into a row of a tile: a run's scale is its largest magnitude / 127.
inline void Quantize(const float* x, size_t k, const Tile& tile, size_t row) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (size_t run = 0; run < k / kRun; ++run, x += kRun) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    const __m256 a = _mm256_max_ps(_mm256_andnot_ps(sign, v[0]), _mm256_andnot_ps(sign, v[1]));
    const __m256 b = _mm256_max_ps(_mm256_andnot_ps(sign, v[2]), _mm256_andnot_ps(sign, v[3]));
    const float largest = Largest(_mm256_max_ps(a, b)), scale = largest / 127.0f;
    const __m256 inverse = _mm256_set1_ps(largest != 0 ? 127.0f / largest : 0.0f);
    __m256i i[4];
    for (int j = 0; j < 4; ++j) i[j] = _mm256_cvtps_epi32(_mm256_mul_ps(v[j], inverse));
    const __m256i total = _mm256_add_epi32(_mm256_add_epi32(i[0], i[1]), _mm256_add_epi32(i[2], i[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    const size_t at = run * kTile + row;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile.values + at * kRun),
                        _mm256_permutevar8x32_epi32(packed, order));
    tile.scales[at] = scale;
    tile.sums[at] = scale * float(_mm_cvtsi128_si32(sum));
  }
}

inline __m256i Four(const int8_t* values) {
  int32_t four;
  std::memcpy(&four, values, 4);
  return _mm256_set1_epi32(four);
}

// y[m, 8 columns of `group`] for the first `Rows` rows of a tile; y points at the first column of the first row.
template <int Rows>
inline void Product(const Weights& w, size_t group, const Tile& tile, float* y, size_t stride) {
  const size_t runs = w.k / kRun, blocks = w.k / w.block, in_block = w.block / kRun;
  const uint8_t* data = w.data + group * runs * kRunBytes;
  const float* scales = w.scales + group * blocks * kColumns;
  const uint8_t* zeros = w.zeros + group * blocks * kColumns;
  const int8_t* a = tile.values;
  const float *a_scales = tile.scales, *a_sums = tile.sums;
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256 sums[Rows];
  for (int m = 0; m < Rows; ++m) sums[m] = _mm256_setzero_ps();
  for (size_t b = 0; b < blocks; ++b, scales += kColumns, zeros += kColumns) {
    const __m256 scale = _mm256_loadu_ps(scales);
    const __m256i zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
    const __m256 shift = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(zero));
    for (size_t i = 0; i < in_block; ++i, data += kRunBytes) {
      __m256i dots[Rows];
      for (int j = 0; j < 4; ++j) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 32 * j));
        const __m256i first = _mm256_and_si256(both, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        for (int m = 0; m < Rows; ++m) {
          const int8_t* four = a + m * kRun + 4 * j;
          const __m256i dot = _mm256_add_epi16(_mm256_maddubs_epi16(first, Four(four)),
                                               _mm256_maddubs_epi16(second, Four(four + 16)));
          dots[m] = j == 0 ? dot : _mm256_add_epi16(dots[m], dot);
        }
      }
      for (int m = 0; m < Rows; ++m) {
        const __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(dots[m], ones));
        const __m256 both = _mm256_mul_ps(scale, _mm256_broadcast_ss(a_scales + m));
        sums[m] = _mm256_fmadd_ps(product, both, sums[m]);
        sums[m] = _mm256_fnmadd_ps(shift, _mm256_broadcast_ss(a_sums + m), sums[m]);
      }
      a += kTile * kRun;
      a_scales += kTile;
      a_sums += kTile;
    }
  }
  for (int m = 0; m < Rows; ++m) _mm256_storeu_ps(y + m * stride, sums[m]);
}

using Half = uint16_t;

inline __m256 Load(const float* from) { return _mm256_loadu_ps(from); }
inline __m256 Load(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline __m256i Mask(size_t count) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(std::min(count, size_t(8)))), index);
}

// The first `count` values, zeros for the rest; of Half there are always 8.
inline __m256 LoadSome(const float* from, size_t count, __m256i mask) {
  return count >= 8 ? Load(from) : _mm256_maskload_ps(from, mask);
}
inline __m256 LoadSome(const Half* from, size_t count, __m256i) {
  return count >= 8 ? Load(from) : _mm256_setzero_ps();
}

// down[m, rank] = x[m, count] @ a[count, rank] for `Rows` rows; `stride` is x's, `step` is down's.
template <int Rows, typename Element>
inline void Down(const float* x, size_t stride, const Element* a, size_t count, size_t rank, float* down, size_t step) {
  for (size_t r = 0; r < rank; r += 16) {
    const size_t lefts = rank - r, rights = lefts > 8 ? lefts - 8 : 0;
    const __m256i left = Mask(lefts), right = Mask(rights);
    __m256 sums[Rows][2];
    for (int m = 0; m < Rows; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
    for (size_t k = 0; k < count; ++k) {
      const Element* from = a + k * rank + r;
      const __m256 a0 = LoadSome(from, lefts, left);
      const __m256 a1 = LoadSome(from + 8, rights, right);
      for (int m = 0; m < Rows; ++m) {
        const __m256 value = _mm256_broadcast_ss(x + m * stride + k);
        sums[m][0] = _mm256_fmadd_ps(value, a0, sums[m][0]);
        sums[m][1] = _mm256_fmadd_ps(value, a1, sums[m][1]);
      }
    }
    for (int m = 0; m < Rows; ++m) {
      _mm256_maskstore_ps(down + m * step + r, left, sums[m][0]);
      _mm256_maskstore_ps(down + m * step + r + 8, right, sums[m][1]);
    }
  }
}

// y[columns] += down[rank] @ b[rank, columns], b's rows `stride` apart; columns is a multiple of 8.
template <typename Element>
inline void Up(const float* down, size_t rank, const Element* b, size_t stride, float* y, size_t columns) {
  size_t n = 0;
  for (; n + 32 <= columns; n += 32) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(y + n + 8 * i);
    for (size_t r = 0; r < rank; ++r) {
      const __m256 value = _mm256_broadcast_ss(down + r);
      for (int i = 0; i < 4; ++i) v[i] = _mm256_fmadd_ps(value, Load(b + r * stride + n + 8 * i), v[i]);
    }
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(y + n + 8 * i, v[i]);
  }
  for (; n < columns; n += 8) {
    __m256 v = _mm256_loadu_ps(y + n);
    for (size_t r = 0; r < rank; ++r)
      v = _mm256_fmadd_ps(_mm256_broadcast_ss(down + r), Load(b + r * stride + n), v);
    _mm256_storeu_ps(y + n, v);
  }
}

}  // namespace loraplex
