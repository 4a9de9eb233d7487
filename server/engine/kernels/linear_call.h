// One call of the operator of linear.cpp, in tasks that threads may share: quantize rows, multiply them by the A of their
// adapters, then by columns of the weights and of B.

#pragma once

#include <memory>
#include <type_traits>
#include <vector>

#include "linear_kernels.h"

namespace loraplex {

constexpr size_t kMaxProjections = 8;
constexpr size_t kRowBlock = 64;            // rows whose activations stay in the cache while weights pass
constexpr size_t kRunsAtOnce = 64;          // of K that a product adds up before the next group's turn,
constexpr size_t kNear = 20 << 10;          // if more activations than these of a tile would leave the nearest cache
constexpr size_t kGroupsAtOnce = kBlockB / kColumns;
constexpr size_t kChunk = 4 * kBlockA;      // values of K that a task adds up for A
constexpr size_t kUpRows = 4;               // rows that B is read for at once
constexpr size_t kUpRanks = 256;            // ranks that B is read for at once

// The weights, and which projections of an adapter they are packed of: `count` from the one at `first` on, which end at
// these columns.
struct Layer {
  Weights weights;
  size_t first, count, ends[kMaxProjections]{};
  std::shared_ptr<uint8_t> memory{};
};

// `function(count)` with rows, at most Most, as a constant.
template <size_t Most, typename Function>
inline void WithRows(size_t rows, Function function) {
  if constexpr (Most > 1)
    if (rows < Most) return WithRows<Most - 1>(rows, function);
  function(std::integral_constant<int, int(Most)>());
}

// Rows of one tile, one after the other under one adapter.
struct Span {
  size_t row, rows;
  const Projection* adapter;
};

// One call: what its tasks share.
struct Call {
  const Layer& layer;
  const float* x;
  float* y;
  size_t rows;                                 // of x and y: rows times tokens
  size_t ranks = 0;                            // most of all projections together that an adapter has
  size_t chunks = 0;
  std::vector<Tile> tiles{};
  std::vector<Span> spans{};                   // of rows that have an adapter
  std::vector<float> down{};                   // [chunks, rows, ranks]; after AddChunks the first chunk has the sum
  size_t groups_a_task = 0;

  void QuantizeRow(size_t row) const {
    Quantize(x + row * layer.weights.k, layer.weights.k, tiles[row / kTile], row % kTile);
  }

  void RunDown(size_t task) {
    const Span& span = spans[task / chunks];
    const size_t k = layer.weights.k, chunk = task % chunks, begin = chunk * kChunk, count = std::min(kChunk, k - begin);
    const size_t at = begin / kRun * kTile + span.row % kTile;
    const Tile& whole = tiles[span.row / kTile];
    const Tile tile{whole.values + at * kRun, whole.scales + at, whole.sums + at};
    float* to = down.data() + (chunk * rows + span.row) * ranks;
    for (size_t p = 0; p < layer.count; ++p) {
      const Projection& projection = span.adapter[layer.first + p];
      const size_t rank = size_t(projection.rank);
      const float* scales = projection.a_scales + begin / kBlockA * rank;
      for (size_t r = 0; r < rank; r += kRanks, scales += kRanks, to += kRanks) {
        const int8_t* a = projection.a + r * k + begin * kRanks;
        WithRows<kTile>(span.rows, [&](auto m) { Down<m>(tile, a, scales, rank, count, to, ranks); });
      }
    }
  }

  void AddChunks() {
    const size_t size = rows * ranks;
    for (size_t chunk = 1; chunk < chunks; ++chunk)
      for (size_t i = 0; i < size; ++i) down[i] += down[chunk * size + i];
  }

  void RunColumns(size_t task) const {
    const Weights& w = layer.weights;
    const size_t first = task * groups_a_task, last = std::min(first + groups_a_task, w.groups());
    for (size_t begin = first, end; begin < last; begin = end) {
      end = std::min(begin + kGroupsAtOnce, last);
      const size_t left = begin * kColumns, right = std::min(end * kColumns, w.n);
      for (size_t block = 0; block < rows; block += kRowBlock) RunProducts(begin, end, block);
      for (const Span& span : spans)
        for (size_t row = 0; row < span.rows; row += kUpRows)
          RunUp({span.row + row, std::min(kUpRows, span.rows - row), span.adapter}, left, right);
    }
  }

  // The base's share of y, for at most kRowBlock rows. What is added up of K at once stays in the nearest cache.
  void RunProducts(size_t begin, size_t end, size_t block) const {
    const Weights& w = layer.weights;
    const size_t last = std::min(block + kRowBlock, rows), in_block = w.block / kRun;
    const bool whole = std::min(rows, kTile) * w.k <= kNear || in_block > kRunsAtOnce;
    const size_t most = whole ? w.k / kRun : kRunsAtOnce / in_block * in_block;
    for (size_t run = 0, runs; run < w.k / kRun; run += runs) {
      runs = std::min(most, w.k / kRun - run);
      for (size_t group = begin; group < end; ++group)
        for (size_t row = block; row < last; row += kTile) {
          float* to = y + row * w.n + group * kColumns;
          const Tile& tile = tiles[row / kTile];
          WithRows<kTile>(last - row, [&](auto m) { Product<m>(w, group, run, runs, tile, to, w.n); });
        }
    }
  }

  // Columns begin .. end of the layer, for at most kUpRows rows.
  void RunUp(const Span& span, size_t begin, size_t end) const {
    const size_t n = layer.weights.n;
    float scaled[kUpRows * kUpRanks];
    const float* from = down.data() + span.row * ranks;
    for (size_t p = 0, start = 0; p < layer.count; start = layer.ends[p++]) {
      const Projection& projection = span.adapter[layer.first + p];
      const size_t width = layer.ends[p] - start, rank = size_t(projection.rank);
      // Blocks of B begin where its projection does, tasks wherever.
      for (size_t left = std::max(start, begin), right; left < std::min(layer.ends[p], end); left = right) {
        const size_t block = (left - start) / kBlockB, first = block * kBlockB;
        const size_t block_width = std::min(kBlockB, width - first);
        right = std::min(start + first + block_width, end);
        float* to = y + span.row * n + left;
        for (size_t r = 0; r < rank; r += kUpRanks) {
          const size_t count = std::min(kUpRanks, rank - r);
          const int8_t* whole = projection.b + first * rank + block * rank * sizeof(float);
          const auto* scales = reinterpret_cast<const float*>(whole) + r;
          for (size_t m = 0; m < span.rows; ++m)
            for (size_t i = 0; i < count; ++i) scaled[m * kUpRanks + i] = from[m * ranks + r + i] * scales[i];
          const int8_t* b = whole + rank * sizeof(float) + r * block_width + (left - start - first);
          WithRows<kUpRows>(span.rows, [&](auto m) {
            Up<m>(scaled, kUpRanks, count, b, block_width, to, n, right - left, rank * (kBlockB + sizeof(float)));
          });
        }
      }
      from += rank;
    }
  }
};

}  // namespace loraplex
