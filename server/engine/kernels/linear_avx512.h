// The arithmetic of linear.cpp for x86-64 with AVX-512 (F, BW, DQ, VL) and its VNNI; see linear_kernels.h.

#pragma once

namespace loraplex {

constexpr size_t kAhead = 4096;  // bytes of weights that are asked for early

// Quantize x [k] into a row of a tile: a run's scale is its largest magnitude / 127.
inline void Quantize(const float* x, size_t k, const Tile& tile, size_t row) {
  for (size_t run = 0; run < k / kRun; ++run, x += kRun) {
    const __m512 v0 = _mm512_loadu_ps(x), v1 = _mm512_loadu_ps(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v0), _mm512_abs_ps(v1)));
    const __m512 inverse = _mm512_set1_ps(largest != 0 ? 127.0f / largest : 0.0f);
    const __m512i i0 = _mm512_cvtps_epi32(_mm512_mul_ps(v0, inverse));
    const __m512i i1 = _mm512_cvtps_epi32(_mm512_mul_ps(v1, inverse));
    const float scale = largest / 127.0f;
    const size_t at = run * kTile + row;
    auto* to = reinterpret_cast<__m128i*>(tile.values + at * kRun);
    _mm_storeu_si128(to, _mm512_cvtsepi32_epi8(i0));
    _mm_storeu_si128(to + 1, _mm512_cvtsepi32_epi8(i1));
    tile.scales[at] = scale;
    tile.sums[at] = scale * float(_mm512_reduce_add_epi32(_mm512_add_epi32(i0, i1)));
  }
}

// up[g, m, kColumns] = down[m] @ b for `Rows` rows of a tile and `groups` groups of columns, from the one at `group` of
// b's projection on. `down` [pairs, kTile] has a scale for each row; `up` is [groups, kTile, kColumns].
template <int Rows>
inline void Up(const int32_t* down, const float* scales, const int8_t* b, const float* b_scales, size_t pairs,
               size_t group, size_t groups, float* up) {
  constexpr int kSums = Rows <= 4 ? 2 : 1;  // of few rows, one product need not wait for the one before
  b += group * pairs * 2 * kBlockB;
  for (size_t last = group + groups; group < last; ++group, up += kTile * kColumns) {
    __m512 sums[Rows];
    for (int m = 0; m < Rows; ++m) sums[m] = _mm512_setzero_ps();
    for (size_t begin = 0; begin < pairs; begin += kPairs) {
      __m512i dots[kSums][Rows];
      for (int i = 0; i < kSums; ++i)
        for (int m = 0; m < Rows; ++m) dots[i][m] = _mm512_setzero_si512();
      for (size_t pair = begin; pair < std::min(begin + kPairs, pairs); pair += kRanks / 2) {
        for (int i = 0; i < int(kRanks / 2); ++i, b += 2 * kBlockB) {
          const __m512i both = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
          const int32_t* from = down + (pair + i) * kTile;
          __m512i* to = dots[i % kSums];
          for (int m = 0; m < Rows; ++m) to[m] = _mm512_dpwssd_epi32(to[m], both, _mm512_set1_epi32(from[m]));
        }
      }
      if constexpr (kSums == 2)
        for (int m = 0; m < Rows; ++m) dots[0][m] = _mm512_add_epi32(dots[0][m], dots[1][m]);
      for (int m = 0; m < Rows; ++m) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(b_scales[group]), _mm512_set1_ps(scales[m]));
        sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[0][m]), scale, sums[m]);
      }
    }
    for (int m = 0; m < Rows; ++m) _mm512_storeu_ps(up + m * kColumns, sums[m]);
  }
}

// y[m, columns of `group`] for the first `Rows` rows of a tile; y points at the first column of the first row. Adds up
// `runs` runs of K from run `begin` on, the first ones of which begin y; whole blocks. `up` [kTile, kColumns], if there
// is any, is added at the end.
template <int Rows>
inline void Product(const Weights& w, size_t group, size_t begin, size_t runs, const Tile& tile, float* y,
                    size_t stride, const float* up) {
  const size_t in_block = w.block / kRun, first_block = group * (w.k / w.block) + begin / in_block;
  const uint8_t* data = w.data + (group * (w.k / kRun) + begin) * kRunBytes;
  const float* scales = w.scales + first_block * kColumns;
  const uint8_t* zeros = w.zeros + first_block * kColumns;
  const int8_t* a = tile.values + begin * kTile * kRun;
  const float *a_scales = tile.scales + begin * kTile, *a_sums = tile.sums + begin * kTile;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sums[Rows];
  for (int m = 0; m < Rows; ++m) sums[m] = begin == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(y + m * stride);
  for (size_t b = 0; b < runs / in_block; ++b, scales += kColumns, zeros += kColumns) {
    const __m512 scale = _mm512_loadu_ps(scales);
    const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
    const __m512 shift = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(zero));
    for (size_t i = 0; i < in_block; ++i, data += kRunBytes) {
      __m512i first[4], second[4];
      for (int j = 0; j < 4; ++j) {
        const __m512i both = _mm512_loadu_si512(data + 64 * j);
        _mm_prefetch(data + 64 * j + kAhead, _MM_HINT_T0);
        first[j] = _mm512_and_si512(both, low);
        second[j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
      for (int m = 0; m < Rows; ++m) {
        const int8_t* from = a + m * kRun;
        __m512i dot = _mm512_setzero_si512(), other = _mm512_setzero_si512();
        for (int j = 0; j < 4; ++j) {
          dot = _mm512_dpbusd_epi32(dot, first[j], _mm512_set1_epi32(Read<int32_t>(from + 4 * j)));
          other = _mm512_dpbusd_epi32(other, second[j], _mm512_set1_epi32(Read<int32_t>(from + 4 * j + 16)));
        }
        const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, other));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(a_scales[m]));
        sums[m] = _mm512_fmadd_ps(product, both, sums[m]);
        sums[m] = _mm512_fnmadd_ps(shift, _mm512_set1_ps(a_sums[m]), sums[m]);
      }
      a += kTile * kRun;
      a_scales += kTile;
      a_sums += kTile;
    }
  }
  if (up != nullptr)
    for (int m = 0; m < Rows; ++m) sums[m] = _mm512_add_ps(sums[m], _mm512_loadu_ps(up + m * kColumns));
  for (int m = 0; m < Rows; ++m) _mm512_storeu_ps(y + m * stride, sums[m]);
}

// down[m, 8] = x[m] @ a[8] over `count` values of K for `Rows` rows of a tile, whose first run and row `tile` points at.
// `a` [count / 8, 8, 8]; its scales are `rank` apart from block to block, down's rows `step`.
template <int Rows>
inline void Down(const Tile& tile, const int8_t* a, const float* scales, size_t rank, size_t count, float* down,
                 size_t step) {
  // a has signs, and the instruction wants one operand without: 128 is added, and taken off again by the values' sum.
  const __m512i high = _mm512_set1_epi8(-128);
  const __m512 shift = _mm512_maskz_mov_ps(0x5555, _mm512_set1_ps(-128.0f));
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const int8_t* x = tile.values;
  const float *x_scales = tile.scales, *x_sums = tile.sums;
  __m512 sums[Rows];
  for (int m = 0; m < Rows; ++m) sums[m] = _mm512_setzero_ps();
  for (size_t begin = 0; begin < count; begin += kBlockA, scales += rank) {
    __m512 block[Rows];
    for (int m = 0; m < Rows; ++m) block[m] = _mm512_setzero_ps();
    for (size_t k = begin; k < std::min(begin + kBlockA, count); k += kRun) {
      __m512i values[4];
      for (int j = 0; j < 4; ++j) values[j] = _mm512_xor_si512(_mm512_loadu_si512(a + k * kRanks + 64 * j), high);
      for (int m = 0; m < Rows; ++m) {
        __m512i dot = _mm512_setzero_si512();
        for (int j = 0; j < 4; ++j)
          dot = _mm512_dpbusd_epi32(dot, values[j], _mm512_set1_epi64(Read<int64_t>(x + m * kRun + 8 * j)));
        block[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(x_scales[m]), block[m]);
        block[m] = _mm512_fmadd_ps(shift, _mm512_set1_ps(x_sums[m]), block[m]);
      }
      x += kTile * kRun;
      x_scales += kTile;
      x_sums += kTile;
    }
    const __m512 scale = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(scales)));
    for (int m = 0; m < Rows; ++m) sums[m] = _mm512_fmadd_ps(block[m], scale, sums[m]);
  }
  for (int m = 0; m < Rows; ++m) {  // two neighbours are halves of one rank
    const __m512 other = _mm512_permute_ps(sums[m], 0xb1);
    const __m512 both = _mm512_add_ps(sums[m], other);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(down + m * step, _mm512_castps512_ps256(_mm512_permutexvar_ps(even, both)));
  }
}

}  // namespace loraplex
