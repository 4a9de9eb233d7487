// A linear layer with 4-bit weights and the LoRA adapters of its rows, as one operator of onnxruntime's CPU provider.
//
//     loraplex.Linear(x, adapters, weights, scales, zeros?) -> y       attributes: K, N, block_size, zero_points,
//                                                                                first, widths
//
//     x         [rows, tokens, K]        float32
//     adapters  [rows]                   int64     address of the row's adapter, 0 for none
//     weights   [N, K / block_size, block_size / 2], scales, zeros: as MatMulNBits takes them; initializers
//     y         [rows, tokens, N]        float32
//
// An adapter is a table of four int64 for each projection of the model: the addresses of A [K, rank] and of
// B [rank, width], with the scale folded in, the rank, 0 where it has none, and whether the two are float16, with a rank
// that is a multiple of 8, or float32. `widths` has the out_features of the projections that this layer is packed of,
// `first` the place of the first one in the table. The caller keeps what is pointed at alive. K is a multiple of
// block_size, block_size one of 32, every width of 8. `zero_points` says whether there are zeros; 8 if there are none.
//
//     y = x @ dequantized(weights) + (x @ A) @ B
//
// linear_operator.py compiles this; onnxruntime_custom_op.h is all it needs of onnxruntime.

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "linear_kernels.h"
#include "onnxruntime_custom_op.h"

namespace {

using namespace loraplex;

constexpr uint32_t kApiVersion = 22;
constexpr size_t kMaxProjections = 8;
constexpr size_t kRowBlock = 64;            // rows whose activations stay in the cache while weights pass
constexpr size_t kTaskProducts = 1 << 16;   // multiplications that are worth a task of their own
constexpr size_t kAloneProducts = 1 << 15;  // fewer are not worth a second thread

#define RETURN_IF(expression)                            \
  do {                                                   \
    if (OrtStatus* status = (expression)) return status; \
  } while (0)

struct Projection {
  const void* a;
  const void* b;
  int64_t rank, half;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct State {
  const OrtApi* api;
  Weights weights;
  size_t first, count, ends[kMaxProjections]{};
  std::unique_ptr<void, Free> memory{};
};

// Rows first .. first + count under one adapter, at most kTile, and the values of K that one task adds up.
struct DownTask {
  size_t row, rows, chunk;
  const Projection* adapter;
};

// One call: what its tasks share.
struct Call {
  const State& state;
  const float* x;
  float* y;
  size_t rows;                                 // of x and y: rows times tokens
  std::vector<const Projection*> adapters;     // of each row; null for none
  size_t ranks = 0;                            // most of all projections together that an adapter has
  size_t chunks = 0;
  std::vector<Tile> tiles{};
  std::vector<float> down{};                   // [chunks, rows, ranks]; after AddChunks the first chunk has the sum
  std::vector<DownTask> down_tasks{};
  size_t groups_a_task = 0;

  void QuantizeTile(size_t tile) const {
    const size_t k = state.weights.k, begin = tile * kTile, end = std::min(begin + kTile, rows);
    for (size_t row = begin; row < end; ++row) Quantize(x + row * k, k, tiles[tile], row - begin);
  }

  template <typename Element>
  void DownRows(size_t count_rows, const float* from, const Element* a, size_t count, size_t rank, float* to) const {
    const size_t k = state.weights.k;
    switch (count_rows) {
      case 1: Down<1>(from, k, a, count, rank, to, ranks); break;
      case 2: Down<2>(from, k, a, count, rank, to, ranks); break;
      case 3: Down<3>(from, k, a, count, rank, to, ranks); break;
      default: Down<4>(from, k, a, count, rank, to, ranks);
    }
  }

  void RunDown(const DownTask& task) {
    const size_t k = state.weights.k, begin = task.chunk * kChunk, count = std::min(kChunk, k - begin);
    const float* from = x + task.row * k + begin;
    float* to = down.data() + (task.chunk * rows + task.row) * ranks;
    for (size_t p = 0; p < state.count; ++p) {
      const Projection& projection = task.adapter[state.first + p];
      const size_t rank = size_t(projection.rank);
      if (projection.half) {
        DownRows(task.rows, from, static_cast<const Half*>(projection.a) + begin * rank, count, rank, to);
      } else {
        DownRows(task.rows, from, static_cast<const float*>(projection.a) + begin * rank, count, rank, to);
      }
      to += rank;
    }
  }

  void AddChunks() {
    const size_t size = rows * ranks;
    for (size_t chunk = 1; chunk < chunks; ++chunk)
      for (size_t i = 0; i < size; ++i) down[i] += down[chunk * size + i];
  }

  void RunColumns(size_t task) const {
    const size_t n = state.weights.n, begin = task * groups_a_task;
    const size_t end = std::min(begin + groups_a_task, n / kColumns);
    for (size_t block = 0; block < rows; block += kRowBlock)
      for (size_t group = begin; group < end; ++group)
        for (size_t row = block; row < std::min(block + kRowBlock, rows); row += kTile) {
          float* to = y + row * n + group * kColumns;
          const Tile& tile = tiles[row / kTile];
          switch (rows - row) {
            case 1: Product<1>(state.weights, group, tile, to, n); break;
            case 2: Product<2>(state.weights, group, tile, to, n); break;
            case 3: Product<3>(state.weights, group, tile, to, n); break;
            default: Product<4>(state.weights, group, tile, to, n);
          }
        }
    if (ranks == 0) return;
    for (size_t row = 0; row < rows; ++row) {
      if (adapters[row] == nullptr) continue;
      const float* from = down.data() + row * ranks;
      for (size_t p = 0, start = 0; p < state.count; start = state.ends[p++]) {
        const Projection& projection = adapters[row][state.first + p];
        const size_t left = std::max(start, begin * kColumns), right = std::min(state.ends[p], end * kColumns);
        const size_t width = state.ends[p] - start, rank = size_t(projection.rank);
        float* to = y + row * n + left;
        if (left < right && projection.half) {
          Up(from, rank, static_cast<const Half*>(projection.b) + (left - start), width, to, right - left);
        } else if (left < right) {
          Up(from, rank, static_cast<const float*>(projection.b) + (left - start), width, to, right - left);
        }
        from += rank;
      }
    }
  }
};

// `function(i)` for each i below `total`, on onnxruntime's threads.
template <typename Function>
OrtStatus* Parallel(const State& state, OrtKernelContext* context, size_t total, Function function) {
  if (total == 1) {
    function(0);
    return nullptr;
  }
  auto call = [](void* data, size_t index) { (*static_cast<Function*>(data))(index); };
  return state.api->KernelContext_ParallelFor(context, call, total, 0, &function);
}

OrtStatus* Shape(const OrtApi& api, const OrtValue* value, std::vector<int64_t>* dims, size_t* size) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF(api.GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus* status = api.GetDimensionsCount(info, &rank);
  dims->resize(rank);
  if (status == nullptr) status = api.GetDimensions(info, dims->data(), rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  *size = 1;
  for (int64_t dim : *dims) *size *= size_t(dim);
  return status;
}

template <typename T>
OrtStatus* Data(const OrtApi& api, const OrtValue* value, T** data) {
  void* found = nullptr;
  RETURN_IF(api.GetTensorMutableData(const_cast<OrtValue*>(value), &found));
  *data = static_cast<T*>(found);
  return nullptr;
}

OrtStatus* Run(const State& state, OrtKernelContext* context) {
  const OrtApi& api = *state.api;
  const Weights& w = state.weights;
  const OrtValue *x = nullptr, *adapters = nullptr;
  OrtValue* y = nullptr;
  std::vector<int64_t> dims, rows_dims;
  size_t size = 0, rows = 0;
  int64_t* handles = nullptr;
  RETURN_IF(api.KernelContext_GetInput(context, 0, &x));
  RETURN_IF(api.KernelContext_GetInput(context, 1, &adapters));
  RETURN_IF(Shape(api, x, &dims, &size));
  RETURN_IF(Shape(api, adapters, &rows_dims, &rows));
  if (dims.empty() || size_t(dims.back()) != w.k || rows == 0 || size / w.k % rows != 0)
    return api.CreateStatus(ORT_INVALID_ARGUMENT, "loraplex.Linear: x is not [rows, tokens, K]");
  dims.back() = int64_t(w.n);
  Call call{state, nullptr, nullptr, size / w.k, {}};
  RETURN_IF(api.KernelContext_GetOutput(context, 0, dims.data(), dims.size(), &y));
  RETURN_IF(Data(api, x, &call.x));
  RETURN_IF(Data(api, y, &call.y));
  RETURN_IF(Data(api, adapters, &handles));
  if (call.rows == 0) return nullptr;

  const size_t tokens = call.rows / rows, runs = w.k / kRun, tiles = (call.rows + kTile - 1) / kTile;
  call.adapters.resize(call.rows);
  for (size_t row = 0; row < call.rows; ++row) {
    auto* table = reinterpret_cast<const Projection*>(handles[row / tokens]);
    size_t ranks = 0;
    for (size_t p = 0; table != nullptr && p < state.count; ++p) ranks += size_t(table[state.first + p].rank);
    call.adapters[row] = ranks ? table : nullptr;
    call.ranks = std::max(call.ranks, ranks);
  }

  // One caller at a time on a thread, and the next operator finds this memory in its cache.
  thread_local std::vector<int8_t> values;
  thread_local std::vector<float> scales;
  values.resize(std::max(values.size(), tiles * kTile * w.k));
  scales.resize(std::max(scales.size(), 2 * tiles * kTile * runs));
  for (size_t tile = 0; tile < tiles; ++tile) {
    float* scale = scales.data() + 2 * tile * kTile * runs;
    call.tiles.push_back({values.data() + tile * kTile * w.k, scale, scale + kTile * runs});
  }
  if (call.ranks) {
    call.chunks = (w.k + kChunk - 1) / kChunk;
    call.down.resize(call.chunks * call.rows * call.ranks);
    for (size_t row = 0, next; row < call.rows; row = next) {
      for (next = row + 1; next < call.rows && next - row < kTile && call.adapters[next] == call.adapters[row];) ++next;
      for (size_t chunk = 0; call.adapters[row] != nullptr && chunk < call.chunks; ++chunk)
        call.down_tasks.push_back({row, next - row, chunk, call.adapters[row]});
    }
  }
  auto first = [&](size_t task) {
    task < tiles ? call.QuantizeTile(task) : call.RunDown(call.down_tasks[task - tiles]);
  };
  const size_t tasks = tiles + call.down_tasks.size();
  if ((call.ranks + 1) * call.rows * w.k < kAloneProducts) {
    for (size_t task = 0; task < tasks; ++task) first(task);
  } else {
    RETURN_IF(Parallel(state, context, tasks, first));
  }
  call.AddChunks();

  const size_t groups = w.n / kColumns;
  const size_t wanted = std::min(std::max(call.rows * w.n * w.k / kTaskProducts, size_t(1)), size_t(64));
  call.groups_a_task = (groups + wanted - 1) / wanted;
  return Parallel(state, context, (groups + call.groups_a_task - 1) / call.groups_a_task,
                  [&](size_t task) { call.RunColumns(task); });
}

OrtStatus* Compute(void* pointer, OrtKernelContext* context) {
  const State& state = *static_cast<State*>(pointer);
  try {
    return Run(state, context);
  } catch (const std::bad_alloc&) {
    return state.api->CreateStatus(ORT_FAIL, "loraplex.Linear: out of memory");
  }
}

OrtStatus* ConstantInput(const OrtApi& api, const OrtKernelInfo* info, size_t index, const OrtValue** value) {
  int constant = 0;
  RETURN_IF(api.KernelInfoGetConstantInput_tensor(info, index, &constant, value));
  return constant ? nullptr : api.CreateStatus(ORT_INVALID_ARGUMENT, "loraplex.Linear: weights are not constant");
}

OrtStatus* Create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** pointer) {
  int64_t k, n, block, first, zero_points, widths[kMaxProjections];
  size_t count = kMaxProjections;
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "K", &k));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "N", &n));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "block_size", &block));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "zero_points", &zero_points));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "first", &first));
  RETURN_IF(api->KernelInfoGetAttributeArray_int64(info, "widths", widths, &count));
  const Weights shape{size_t(k), size_t(n), size_t(block), nullptr, nullptr, nullptr};
  std::unique_ptr<State> state(new (std::nothrow) State{api, shape, size_t(first), count});
  if (state == nullptr) return api->CreateStatus(ORT_FAIL, "loraplex.Linear: out of memory");
  for (size_t i = 0, end = 0; i < count; ++i) state->ends[i] = end += size_t(widths[i]);

  const OrtValue *weights = nullptr, *scales = nullptr, *zeros = nullptr;
  const uint8_t *weights_data = nullptr, *zeros_data = nullptr;
  const float* scales_data = nullptr;
  RETURN_IF(ConstantInput(*api, info, 2, &weights));
  RETURN_IF(Data(*api, weights, &weights_data));
  RETURN_IF(ConstantInput(*api, info, 3, &scales));
  RETURN_IF(Data(*api, scales, &scales_data));
  if (zero_points) {
    RETURN_IF(ConstantInput(*api, info, 4, &zeros));
    RETURN_IF(Data(*api, zeros, &zeros_data));
  }

  Weights& w = state->weights;
  const size_t blocks = w.n * (w.k / w.block), bytes = w.n * w.k / 2 + blocks * (sizeof(float) + 1);
  state->memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (state->memory == nullptr) return api->CreateStatus(ORT_FAIL, "loraplex.Linear: out of memory");
  w.data = static_cast<uint8_t*>(state->memory.get());
  w.scales = reinterpret_cast<float*>(w.data + w.n * w.k / 2);
  w.zeros = reinterpret_cast<uint8_t*>(w.scales + blocks);
  for (size_t group = 0; group < w.n / kColumns; ++group) PackGroup(w, group, weights_data, scales_data, zeros_data);
  *pointer = state.release();
  return nullptr;
}

struct LinearOp : OrtCustomOp {
  LinearOp() : OrtCustomOp{} {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return "Linear"; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 5; };
    GetInputType = [](const OrtCustomOp*, size_t index) {
      return index == 0 || index == 3 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
             : index == 1             ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                                      : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index == 4 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = Create;
    KernelComputeV2 = Compute;
    KernelDestroy = [](void* state) { delete static_cast<State*>(state); };
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  static LinearOp linear;
  const OrtApi* api = base->GetApi(kApiVersion);
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF(api->CreateCustomOpDomain("loraplex", &domain));
  RETURN_IF(api->CustomOpDomain_Add(domain, &linear));
  return api->AddCustomOpDomain(options, domain);
}
