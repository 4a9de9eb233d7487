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
constexpr size_t kUp = 8 << 10;             // values that adapters add which are kept at once
constexpr size_t kStream = 512 << 10;       // bytes of weights that pass in between
constexpr size_t kChunk = 4 * kBlockA;      // values of K that a task adds up for A

// The weights, and which projections of an adapter they are packed of: `count` from the one at `first` on, which end at
// these columns.
struct Layer {
  Weights weights;
  size_t first, count, ends[kMaxProjections]{};
  std::shared_ptr<uint8_t> memory{};

  // Which projection a group of columns is of, and the group that this one begins with.
  size_t projection(size_t group) const {
    return size_t(std::upper_bound(ends, ends + count, group * kColumns) - ends);
  }
  size_t first_group(size_t projection) const { return projection == 0 ? 0 : ends[projection - 1] / kColumns; }
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
  std::vector<size_t> first_spans{};           // of each tile; and the end
  std::vector<float> down{};                   // [chunks, rows, ranks]; after FinishDown the first chunk has the sum
  std::vector<int32_t> rounded{};              // [tiles, ranks / 2, kTile] pairs of 16 bits
  std::vector<float> rounded_scales{};         // [projections, rows]
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

  // Add up what RunDown left, and round it.
  void FinishDown() {
    const size_t size = rows * ranks;
    for (size_t chunk = 1; chunk < chunks; ++chunk)
      for (size_t i = 0; i < size; ++i) down[i] += down[chunk * size + i];
    rounded.resize(tiles.size() * kTile * ranks / 2);
    rounded_scales.resize(layer.count * rows);
    for (const Span& span : spans)
      for (size_t row = span.row; row < span.row + span.rows; ++row) {
        const float* from = down.data() + row * ranks;
        int32_t* to = rounded.data() + row / kTile * (kTile * ranks / 2) + row % kTile;
        for (size_t p = 0; p < layer.count; ++p) {
          const size_t rank = size_t(span.adapter[layer.first + p].rank);
          rounded_scales[p * rows + row] = Round(from, rank, to);
          from += rank;
          to += rank / 2 * kTile;
        }
      }
  }

  void RunColumns(size_t task) const {
    const Weights& w = layer.weights;
    const size_t first = task * groups_a_task, last = std::min(first + groups_a_task, w.groups());
    for (size_t begin = first, end; begin < last; begin = end) {
      end = std::min(begin + GroupsAtOnce(), last);
      if (ranks != 0) end = std::min(end, layer.ends[layer.projection(begin)] / kColumns);
      for (size_t block = 0; block < rows; block += kRowBlock) RunProducts(begin, end, block);
    }
  }

  // Groups of columns for which what adapters add is kept. Of their weights no more than leaves what was asked for in the
  // cache.
  size_t GroupsAtOnce() const {
    const size_t tiles_at_once = (std::min(rows, kRowBlock) + kTile - 1) / kTile;
    const size_t bytes = layer.weights.k / kRun * kRunBytes;
    return std::max(std::min(kUp / (tiles_at_once * kTile * kColumns), kStream / bytes), size_t(1));
  }

  // Groups begin .. end of one projection, for at most kRowBlock rows. What is added up of K at once stays in the nearest
  // cache. What adapters add is computed first, for all groups, and kept aside: a product of few rows waits for its weights
  // alone, and each time that something else comes between them it waits longer.
  void RunProducts(size_t begin, size_t end, size_t block) const {
    const Weights& w = layer.weights;
    const size_t last = std::min(block + kRowBlock, rows), of_tile = (end - begin) * kTile * kColumns;
    const size_t most = RunsAtOnce();
    float up[kUp];
    Ahead ahead;
    if (ranks != 0) {
      for (size_t row = block; row < last; row += kTile) RunUp(row / kTile, begin, end, up + (row - block) / kTile * of_tile);
      if (rows != 1) Plan(begin, end, block, last, &ahead);
    }
    for (size_t group = begin; group < end; ++group)
      for (size_t run = 0, runs; run < w.k / kRun; run += runs) {
        runs = std::min(most, w.k / kRun - run);
        const bool ends = ranks != 0 && run + runs == w.k / kRun;
        for (size_t row = block; row < last; row += kTile) {
          const size_t tile = row / kTile;
          float* to = y + row * w.n + group * kColumns;
          const float* of_group = up + (row - block) / kTile * of_tile + (group - begin) * kTile * kColumns;
          const float* adds = ends && first_spans[tile] != first_spans[tile + 1] ? of_group : nullptr;
          if (ranks != 0) ahead.Ask();
          WithRows<kTile>(last - row, [&](auto m) { Product<m>(w, group, run, runs, tiles[tile], to, w.n, adds); });
        }
      }
  }

  // Whole blocks.
  size_t RunsAtOnce() const {
    const Weights& w = layer.weights;
    const size_t in_block = w.block / kRun;
    const bool whole = std::min(rows, kTile) * w.k <= kNear || in_block > kRunsAtOnce;
    return whole ? w.k / kRun : kRunsAtOnce / in_block * in_block;
  }

  // What adapters add to groups begin .. end of a tile, to `up` [groups, kTile, kColumns].
  void RunUp(size_t tile, size_t begin, size_t end, float* up) const {
    const size_t p = layer.projection(begin), group = begin - layer.first_group(p);
    size_t alone = std::min(kTile, rows - tile * kTile);
    for (size_t i = first_spans[tile]; i < first_spans[tile + 1]; ++i)
      if (spans[i].adapter[layer.first + p].rank != 0) alone -= spans[i].rows;
    if (alone != 0) std::fill_n(up, (end - begin) * kTile * kColumns, 0.0f);
    for (size_t i = first_spans[tile]; i < first_spans[tile + 1]; ++i) {
      const Span& span = spans[i];
      const Projection& projection = span.adapter[layer.first + p];
      const size_t pairs = size_t(projection.rank) / 2, row = span.row % kTile;
      if (pairs == 0) continue;
      size_t at = tile * ranks / 2;
      for (size_t before = 0; before < p; ++before) at += size_t(span.adapter[layer.first + before].rank) / 2;
      const int32_t* from = rounded.data() + at * kTile + row;
      const float* scales = rounded_scales.data() + p * rows + span.row;
      WithRows<kTile>(span.rows, [&](auto m) {
        Up<m>(from, scales, projection.b, projection.b_scales, pairs, group, end - begin, up + row * kColumns);
      });
    }
  }

  // Of each adapter, the B of the groups that follow, and of what the next layer begins with, A and the B of some columns,
  // as much as of this one is done.
  void Plan(size_t begin, size_t end, size_t block, size_t last, Ahead* ahead) const {
    const size_t groups = layer.weights.groups(), after = std::min(end + (end - begin), groups);
    const size_t first_tile = block / kTile, last_tile = (last + kTile - 1) / kTile;
    const size_t runs = layer.weights.k / kRun, parts = (runs + RunsAtOnce() - 1) / RunsAtOnce();
    for (size_t i = first_spans[first_tile]; i < first_spans[last_tile]; ++i) {
      const Projection* adapter = spans[i].adapter;
      if (i != 0 && spans[i - 1].adapter == adapter) continue;
      if (end < groups) {
        const size_t p = layer.projection(end), of_group = size_t(adapter[layer.first + p].rank) * kColumns;
        ahead->Add(adapter[layer.first + p].b + (end - layer.first_group(p)) * of_group, (after - end) * of_group);
      }
      const Projection& next = adapter[layer.first + layer.count];
      const size_t bytes = size_t(next.b - next.a) + size_t(next.rank) * (kUp / kTile);
      ahead->Add(next.a + bytes * begin / groups, bytes * end / groups - bytes * begin / groups);
    }
    ahead->Spread((end - begin) * (last_tile - first_tile) * parts);
  }
};

}  // namespace loraplex
