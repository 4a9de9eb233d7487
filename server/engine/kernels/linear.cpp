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
// An adapter is a table of a Projection, five int64, for each projection of the model, and one more; a rank of 0 where it
// leaves it alone. The scale of the adapter is folded in. `widths` has the out_features of the projections that this layer is
// packed of, `first` the place of the first one in the table. The caller keeps what is pointed at alive. K is a multiple
// of block_size, block_size one of 32, every width of 16. `zero_points` says whether there are zeros; 8 if there are none.
//
//     y = x @ dequantized(weights) + (x @ A) @ B
//
// linear_operator.py compiles this; onnxruntime_custom_op.h is all it needs of onnxruntime.

#include <algorithm>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "huge_pages.h"
#include "linear_call.h"
#include "onnxruntime_custom_op.h"

namespace {

using namespace loraplex;

constexpr uint32_t kApiVersion = 22;
constexpr size_t kTaskProducts = 1 << 16;   // multiplications that are worth a task of their own
constexpr size_t kMostTasks = 64;
constexpr size_t kAloneProducts = 1 << 16;  // fewer are not worth a second thread
constexpr size_t kAloneValues = 1 << 14;    // nor is quantizing fewer values

#define RETURN_IF(expression)                            \
  do {                                                   \
    if (OrtStatus* status = (expression)) return status; \
  } while (0)

struct State {
  const OrtApi* api;
  Layer layer;
};

// `function(i)` for each i below `total`, on onnxruntime's threads if `work` is more than is `alone` done by this one.
template <typename Function>
OrtStatus* ForEach(const State& state, OrtKernelContext* context, size_t total, size_t work, size_t alone,
                   Function function) {
  if (total == 1 || work <= alone) {
    for (size_t i = 0; i < total; ++i) function(i);
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
  const Weights& w = state.layer.weights;
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
  Call call{state.layer, nullptr, nullptr, size / w.k};
  RETURN_IF(api.KernelContext_GetOutput(context, 0, dims.data(), dims.size(), &y));
  RETURN_IF(Data(api, x, &call.x));
  RETURN_IF(Data(api, y, &call.y));
  RETURN_IF(Data(api, adapters, &handles));
  if (call.rows == 0) return nullptr;

  const size_t tokens = call.rows / rows, runs = w.k / kRun, tiles = (call.rows + kTile - 1) / kTile;
  for (size_t row = 0; row < call.rows; ++row) {
    if (row % kTile == 0) call.first_spans.push_back(call.spans.size());
    auto* table = reinterpret_cast<const Projection*>(handles[row / tokens]);
    size_t ranks = 0;
    for (size_t p = 0; table != nullptr && p < state.layer.count; ++p) ranks += size_t(table[state.layer.first + p].rank);
    if (ranks == 0) continue;
    call.ranks = std::max(call.ranks, ranks);
    Span* last = call.spans.empty() ? nullptr : &call.spans.back();
    if (last != nullptr && last->adapter == table && last->row + last->rows == row && row % kTile != 0) {
      ++last->rows;
    } else {
      call.spans.push_back({row, 1, table});
    }
  }

  call.first_spans.push_back(call.spans.size());

  // One caller at a time on a thread, and the next operator finds this memory in its cache.
  thread_local std::vector<int8_t> values;
  thread_local std::vector<float> scales;
  values.resize(std::max(values.size(), tiles * kTile * w.k));
  scales.resize(std::max(scales.size(), 2 * tiles * kTile * runs));
  for (size_t tile = 0; tile < tiles; ++tile) {
    float* scale = scales.data() + 2 * tile * kTile * runs;
    call.tiles.push_back({values.data() + tile * kTile * w.k, scale, scale + kTile * runs});
  }
  auto quantize = [&](size_t row) { call.QuantizeRow(row); };
  RETURN_IF(ForEach(state, context, call.rows, call.rows * w.k, kAloneValues, quantize));
  if (call.ranks) {
    call.chunks = (w.k + kChunk - 1) / kChunk;
    call.down.resize(call.chunks * call.rows * call.ranks);
    auto down = [&](size_t task) { call.RunDown(task); };
    RETURN_IF(ForEach(state, context, call.spans.size() * call.chunks, call.rows * w.k * call.ranks, kAloneProducts, down));
    call.FinishDown();
  }

  const size_t groups = w.groups();
  // Of few rows, tasks are as large as threads allow, because each begins with its adapters' B.
  static const size_t few = std::min(kMostTasks, 4 * size_t(std::max(std::thread::hardware_concurrency(), 1u)));
  const size_t most = tiles == 1 ? few : kMostTasks;
  const size_t wanted = std::min(std::max(call.rows * w.n * w.k / kTaskProducts, size_t(1)), most);
  call.groups_a_task = (groups + wanted - 1) / wanted;
  return ForEach(state, context, (groups + call.groups_a_task - 1) / call.groups_a_task, call.rows * w.n * w.k,
                 kAloneProducts, [&](size_t task) { call.RunColumns(task); });
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

OrtStatus* Pack(const OrtApi* api, const OrtKernelInfo* info, void** pointer) {
  int64_t k, n, block, first, zero_points, widths[kMaxProjections];
  size_t count = kMaxProjections;
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "K", &k));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "N", &n));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "block_size", &block));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "zero_points", &zero_points));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "first", &first));
  RETURN_IF(api->KernelInfoGetAttributeArray_int64(info, "widths", widths, &count));
  const Weights shape{size_t(k), size_t(n), size_t(block), nullptr, nullptr, nullptr};
  std::unique_ptr<State> state(new State{api, {shape, size_t(first), count}});
  for (size_t i = 0, end = 0; i < count; ++i) state->layer.ends[i] = end += size_t(widths[i]);

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

  Weights& w = state->layer.weights;
  const size_t blocks = w.groups() * kColumns * (w.k / w.block), bytes = w.groups() * (w.k / kRun) * kRunBytes;
  state->layer.memory = Chunk::Take(bytes + blocks * (sizeof(float) + 1));
  w.data = state->layer.memory.get();
  w.scales = reinterpret_cast<float*>(w.data + bytes);
  w.zeros = reinterpret_cast<uint8_t*>(w.scales + blocks);
  for (size_t group = 0; group < w.groups(); ++group) PackGroup(w, group, weights_data, scales_data, zeros_data);
  *pointer = state.release();
  return nullptr;
}

OrtStatus* Create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** pointer) {
  try {
    return Pack(api, info, pointer);
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "loraplex.Linear: out of memory");
  }
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
