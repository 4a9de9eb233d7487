// The arithmetic of linear.cpp for x86-64 with AVX2 and FMA; see linear_kernels.h.
//
// A product of 32 values with 4-bit weights is added up in 16 bits, which is exact: 8 products of pairs, each at most
// 2 * 15 * 127. One pair of an adapter's, at most 2 * 127 * 127, is as much as they hold.

#pragma once

namespace loraplex {

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

// Adds products of unsigned and signed bytes to sums of 16 bits.
inline __m256i Dot(__m256i sum, __m256i without_sign, __m256i with_sign) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(without_sign, with_sign));
}

inline __m256i Sum(__m256i dots) { return _mm256_madd_epi16(dots, _mm256_set1_epi16(1)); }

// up[g, m, kColumns] = down[m] @ b for `Rows` rows of a tile and `groups` groups of columns, from the one at `group` of
// b's projection on. `down` [pairs, kTile] has a scale for each row; `up` is [groups, kTile, kColumns].
template <int Rows>
inline void Up(const int32_t* down, const float* scales, const int8_t* b, const float* b_scales, size_t pairs,
               size_t group, size_t groups, float* up) {
  for (size_t last = group + groups; group < last; ++group, up += kTile * kColumns) {
    const size_t block = group * kColumns / kBlockB;
    const int8_t* of_group = b + block * pairs * 2 * kBlockB + group * kColumns % kBlockB * 2;
    __m256 sums[Rows];
    for (int m = 0; m < Rows; ++m) sums[m] = _mm256_setzero_ps();
    for (size_t begin = 0; begin < pairs; begin += kPairs) {
      __m256i dots[Rows];
      for (int m = 0; m < Rows; ++m) dots[m] = _mm256_setzero_si256();
      for (size_t pair = begin; pair < std::min(begin + kPairs, pairs); ++pair, of_group += 2 * kBlockB) {
        const __m256i both = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(of_group)));
        const int32_t* from = down + pair * kTile;
        for (int m = 0; m < Rows; ++m)
          dots[m] = _mm256_add_epi32(dots[m], _mm256_madd_epi16(both, _mm256_set1_epi32(from[m])));
      }
      for (int m = 0; m < Rows; ++m) {
        const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(b_scales[block]), _mm256_broadcast_ss(scales + m));
        sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m]), scale, sums[m]);
      }
    }
    for (int m = 0; m < Rows; ++m) _mm256_storeu_ps(up + m * kColumns, sums[m]);
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
  const __m256i low = _mm256_set1_epi8(15);
  __m256 sums[Rows];
  for (int m = 0; m < Rows; ++m) sums[m] = begin == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(y + m * stride);
  for (size_t b = 0; b < runs / in_block; ++b, scales += kColumns, zeros += kColumns) {
    const __m256 scale = _mm256_loadu_ps(scales);
    const __m256i zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
    const __m256 shift = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(zero));
    for (size_t i = 0; i < in_block; ++i, data += kRunBytes) {
      __m256i dots[Rows];
      for (int m = 0; m < Rows; ++m) dots[m] = _mm256_setzero_si256();
      for (int j = 0; j < 4; ++j) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 32 * j));
        const __m256i first = _mm256_and_si256(both, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        for (int m = 0; m < Rows; ++m) {
          const int8_t* four = a + m * kRun + 4 * j;
          dots[m] = Dot(dots[m], first, _mm256_set1_epi32(Read<int32_t>(four)));
          dots[m] = Dot(dots[m], second, _mm256_set1_epi32(Read<int32_t>(four + 16)));
        }
      }
      for (int m = 0; m < Rows; ++m) {
        const __m256 product = _mm256_cvtepi32_ps(Sum(dots[m]));
        const __m256 both = _mm256_mul_ps(scale, _mm256_broadcast_ss(a_scales + m));
        sums[m] = _mm256_fmadd_ps(product, both, sums[m]);
        sums[m] = _mm256_fnmadd_ps(shift, _mm256_broadcast_ss(a_sums + m), sums[m]);
      }
      a += kTile * kRun;
      a_scales += kTile;
      a_sums += kTile;
    }
  }
  if (up != nullptr)
    for (int m = 0; m < Rows; ++m) sums[m] = _mm256_add_ps(sums[m], _mm256_loadu_ps(up + m * kColumns));
  for (int m = 0; m < Rows; ++m) _mm256_storeu_ps(y + m * stride, sums[m]);
}

// down[m, 8] = x[m] @ a[8] over `count` values of K for `Rows` rows of a tile, whose first run and row `tile` points at.
// `a` [count / 8, 8, 8]; its scales are `rank` apart from block to block, down's rows `step`.
template <int Rows>
inline void Down(const Tile& tile, const int8_t* a, const float* scales, size_t rank, size_t count, float* down,
                 size_t step) {
  const int8_t* x = tile.values;
  const float* x_scales = tile.scales;
  __m256 sums[Rows][2];
  for (int m = 0; m < Rows; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
  for (size_t begin = 0; begin < count; begin += kBlockA, scales += rank) {
    __m256 block[Rows][2];
    for (int m = 0; m < Rows; ++m) block[m][0] = block[m][1] = _mm256_setzero_ps();
    for (size_t k = begin; k < std::min(begin + kBlockA, count); k += kRun) {
      for (int m = 0; m < Rows; ++m) {
        const __m256 scale = _mm256_broadcast_ss(x_scales + m);
        __m256i dots[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int j = 0; j < 4; ++j) {
          const __m256i eight = _mm256_set1_epi64x(Read<int64_t>(x + m * kRun + 8 * j));
          const __m256i positive = _mm256_abs_epi8(eight);
          for (int half = 0; half < 2; ++half) {
            const auto* from = reinterpret_cast<const __m256i*>(a + k * kRanks + 64 * j + 32 * half);
            const __m256i products = _mm256_maddubs_epi16(positive, _mm256_sign_epi8(_mm256_loadu_si256(from), eight));
            dots[half] = _mm256_add_epi32(dots[half], Sum(products));
          }
        }
        for (int half = 0; half < 2; ++half)
          block[m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[half]), scale, block[m][half]);
      }
      x += kTile * kRun;
      x_scales += kTile;
    }
    for (int half = 0; half < 2; ++half) {
      const __m128 four = _mm_loadu_ps(scales + 4 * half);
      const __m256 scale = _mm256_set_m128(_mm_unpackhi_ps(four, four), _mm_unpacklo_ps(four, four));
      for (int m = 0; m < Rows; ++m) sums[m][half] = _mm256_fmadd_ps(block[m][half], scale, sums[m][half]);
    }
  }
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  for (int m = 0; m < Rows; ++m)  // two neighbours are halves of one rank
    _mm256_storeu_ps(down + m * step, _mm256_permutevar8x32_ps(_mm256_hadd_ps(sums[m][0], sums[m][1]), order));
}

}  // namespace loraplex
