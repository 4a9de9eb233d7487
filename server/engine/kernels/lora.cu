// The LoRA branch of a linear layer as one operator for onnxruntime's CUDA provider.
//
//     loraplex.Order(slots) -> (order, sorted)
//
//     slots   [rows, 1]  float16   1 + index of the row's adapter, 0 for none; exact up to 2048
//     order   [rows]     int32     the rows by slot, so that rows of one adapter are neighbours
//     sorted  [rows]     int32     their slots
//
//     loraplex.Lora(x, base, order, sorted) -> (y, scratch)       attributes: widths, in_features, ranks, slots, index
//
//     x       [rows, K]         float16   input of the linear layer
//     base    [rows, N]         float16   its output; y takes its memory where onnxruntime allows it
//     A       [slots, M*R, K]   float16   M modules of the layer (q, k, v for one), R ranks each, padded with zeros
//     B       [slots, R, N]     float16   scale folded in
//
//     scratch[t, r] = sum_k x[t, k] * A[s(t), r, k]
//     y[t, n]       = base[t, n] + sum_r scratch[t, m(n)*R + r] * B[s(t), r, n]
//
//     loraplex.LoraGated: the same for a layer of gate and up, y [rows, N/2] = silu(gate) * up
//
// m(n) is the module that column n belongs to; `widths` has the columns of each module, `in_features` is K, `ranks` R.
// K, R and the widths are multiples of 8. A and B belong to the operator and are written from outside (lora_bank.cuh).
// Stock operators need four to five launches for this and compute every adapter for every row; these are two, which read
// the weights of the adapters in use and nothing else. The second begins, by programmatic dependent launch, while the
// first still runs, with loading its part of B.
//
// lora_operator.py compiles this; onnxruntime_custom_op.h is all it needs of onnxruntime.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <new>

#include "lora_bank.cuh"
#include "lora_kernels.cuh"
#include "onnxruntime_custom_op.h"

namespace {

constexpr uint32_t kApiVersion = 22;

// Programmatic dependent launch came with compute capability 9.0.
bool OverlapsLaunches() {
  static const bool found = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
  }();
  return found;
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, bool overlap,
                   Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap && OverlapsLaunches() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

#define RETURN_IF(expression)                            \
  do {                                                   \
    if (OrtStatus* status = (expression)) return status; \
  } while (0)

// A kernel's tensors and stream, in the order of the operator's inputs and outputs.
struct Call {
  const OrtApi& api;
  OrtKernelContext* context;

  OrtStatus* Input(size_t index, void** data, int64_t* dims, size_t rank) const {
    const OrtValue* value = nullptr;
    RETURN_IF(api.KernelContext_GetInput(context, index, &value));
    RETURN_IF(api.GetTensorMutableData(const_cast<OrtValue*>(value), data));
    OrtTensorTypeAndShapeInfo* info = nullptr;
    RETURN_IF(api.GetTensorTypeAndShape(value, &info));
    size_t found = 0;
    OrtStatus* status = api.GetDimensionsCount(info, &found);
    if (status == nullptr && found != rank)
      status = api.CreateStatus(ORT_INVALID_ARGUMENT, "loraplex: an input has an unexpected number of dimensions");
    if (status == nullptr) status = api.GetDimensions(info, dims, rank);
    api.ReleaseTensorTypeAndShapeInfo(info);
    return status;
  }

  OrtStatus* Output(size_t index, void** data, const int64_t* dims, size_t rank) const {
    OrtValue* value = nullptr;
    RETURN_IF(api.KernelContext_GetOutput(context, index, dims, rank, &value));
    return api.GetTensorMutableData(value, data);
  }

  OrtStatus* Stream(cudaStream_t* stream) const {
    return api.KernelContext_GetGPUComputeStream(context, reinterpret_cast<void**>(stream));
  }

  OrtStatus* Result(cudaError_t error) const {
    return error == cudaSuccess ? nullptr : api.CreateStatus(ORT_EP_FAIL, cudaGetErrorString(error));
  }
};

struct State {
  const OrtApi* api;
  Widths widths;
  bool gated;
  int inputs, ranks;  // K; of one module
  Weights weights;
};

OrtStatus* ComputeOrder(void* state, OrtKernelContext* context) {
  const Call call{*static_cast<State*>(state)->api, context};
  void *slots, *order, *sorted;
  int64_t dims[2];
  cudaStream_t stream;
  RETURN_IF(call.Input(0, &slots, dims, 2));
  RETURN_IF(call.Output(0, &order, dims, 1));
  RETURN_IF(call.Output(1, &sorted, dims, 1));
  RETURN_IF(call.Stream(&stream));
  const int rows = int(dims[0]);
  if (rows == 0) return nullptr;
  return call.Result(Launch(Order, dim3((rows + 127) / 128), dim3(128), stream, false,
                            static_cast<const __half*>(slots), static_cast<int*>(order), static_cast<int*>(sorted),
                            rows));
}

OrtStatus* ComputeLora(void* state, OrtKernelContext* context) {
  const State& kernel = *static_cast<State*>(state);
  const Call call{*kernel.api, context};
  void *x_data, *base_data, *order_data, *sorted_data, *y_data, *scratch_data;
  int64_t x_dims[2], base_dims[2], order_dims[1];
  cudaStream_t stream;
  RETURN_IF(call.Input(0, &x_data, x_dims, 2));
  RETURN_IF(call.Input(1, &base_data, base_dims, 2));
  RETURN_IF(call.Input(2, &order_data, order_dims, 1));
  RETURN_IF(call.Input(3, &sorted_data, order_dims, 1));
  const Widths& widths = kernel.widths;
  if (x_dims[1] != kernel.inputs || base_dims[1] != widths.end[widths.count - 1])
    return kernel.api->CreateStatus(ORT_INVALID_ARGUMENT, "loraplex: a linear layer has another shape than was linked");
  const int ranks = kernel.ranks * widths.count;
  const int64_t scratch_dims[2] = {x_dims[0], ranks};
  const int64_t y_dims[2] = {base_dims[0], kernel.gated ? base_dims[1] / 2 : base_dims[1]};
  RETURN_IF(call.Output(0, &y_data, y_dims, 2));
  RETURN_IF(call.Output(1, &scratch_data, scratch_dims, 2));
  RETURN_IF(call.Stream(&stream));
  const int rows = int(x_dims[0]), k = int(x_dims[1]), n = int(base_dims[1]);
  if (rows == 0) return nullptr;
  const auto* x = static_cast<const __half*>(x_data);
  const __half *a = kernel.weights.a, *b = kernel.weights.b;
  const auto *order = static_cast<const int*>(order_data), *sorted = static_cast<const int*>(sorted_data);
  auto* y = static_cast<__half*>(y_data);
  auto* scratch = static_cast<float*>(scratch_data);
  const int module_ranks = kernel.ranks;
  if (!kernel.gated && y_data != base_data)
    RETURN_IF(call.Result(
        cudaMemcpyAsync(y, base_data, size_t(rows) * n * sizeof(__half), cudaMemcpyDeviceToDevice, stream)));

  const auto shrink_few = [&](auto* shrink, int tile) {
    return Launch(shrink, dim3(ranks, (rows + tile - 1) / tile), dim3(kShrinkThreads), stream, false, x, order, sorted,
                  a, scratch, rows, k);
  };
  const auto expand = [&](auto* function, int tile) {
    const dim3 grid((n / 8 + kExpandThreads - 1) / kExpandThreads, (rows + tile - 1) / tile);
    return Launch(function, grid, dim3(kExpandThreads), stream, true, static_cast<const float*>(scratch), order, sorted,
                  b, y, rows, n, module_ranks, widths);
  };
  const auto expand_gated = [&](auto* function, int tile) {
    const dim3 grid((n / 16 + kExpandThreads - 1) / kExpandThreads, (rows + tile - 1) / tile);
    return Launch(function, grid, dim3(kExpandThreads), stream, true, static_cast<const float*>(scratch), order, sorted,
                  b, static_cast<const __half*>(base_data), y, rows, n / 2, module_ranks);
  };
  // Up to kFewRows the rows are better each for themselves, since waiting for memory is what takes time.
  if (rows <= kFewRows) {
    RETURN_IF(call.Result(shrink_few(ShrinkFew<1>, 1)));
    return call.Result(kernel.gated ? expand_gated(ExpandGated<1>, 1) : expand(Expand<1>, 1));
  }
  if (rows <= kDecodeRows) {
    RETURN_IF(call.Result(shrink_few(ShrinkFew<2>, 2)));
    return call.Result(kernel.gated ? expand_gated(ExpandGated<2>, 2) : expand(Expand<2>, 2));
  }
  const dim3 warps(32, 8), grid((ranks + 7) / 8, (rows + 7) / 8);
  RETURN_IF(call.Result(Launch(ShrinkMany, grid, warps, stream, false, x, order, sorted, a, scratch, rows, k, ranks)));
  return call.Result(kernel.gated ? expand_gated(ExpandGated<16>, 16) : expand(Expand<16>, 16));
}

OrtStatus* OutOfMemory(const OrtApi* api) { return api->CreateStatus(ORT_FAIL, "loraplex: out of memory"); }

OrtStatus* CreateOrder(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo*, void** state) {
  *state = new (std::nothrow) State{api};
  return *state ? nullptr : OutOfMemory(api);
}

template <bool Gated>
OrtStatus* CreateLora(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** state) {
  int64_t columns[kMaxModules], inputs, ranks, slots, index;
  size_t count = kMaxModules;
  RETURN_IF(api->KernelInfoGetAttributeArray_int64(info, "widths", columns, &count));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "in_features", &inputs));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "ranks", &ranks));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "slots", &slots));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "index", &index));
  Widths widths{int(count), {}};
  for (size_t i = 0, end = 0; i < count; ++i) widths.end[i] = int(end += size_t(columns[i]));
  const size_t down = count * size_t(ranks * inputs), up = size_t(ranks) * widths.end[count - 1];
  auto* kernel =
      new (std::nothrow) State{api, widths, Gated, int(inputs), int(ranks), Weights{index, slots, down, up}};
  if (kernel == nullptr) return OutOfMemory(api);
  if (const cudaError_t error = kernel->weights.Allocate(); error != cudaSuccess) {
    delete kernel;
    return api->CreateStatus(ORT_EP_FAIL, cudaGetErrorString(error));
  }
  Enlist(&kernel->weights);
  *state = kernel;
  return nullptr;
}

void Destroy(void* state) {
  auto* kernel = static_cast<State*>(state);
  if (kernel->weights.a != nullptr) Release(&kernel->weights);
  delete kernel;
}

struct CudaOp : OrtCustomOp {
  CudaOp() : OrtCustomOp{} {
    version = kApiVersion;
    GetExecutionProviderType = [](const OrtCustomOp*) { return "CUDAExecutionProvider"; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    KernelDestroy = Destroy;
  }
};

struct OrderOp : CudaOp {
  OrderOp() {
    GetName = [](const OrtCustomOp*) { return "Order"; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32; };
    CreateKernelV2 = CreateOrder;
    KernelComputeV2 = ComputeOrder;
  }
};

struct LoraGatedOp : CudaOp {
  LoraGatedOp() {
    GetName = [](const OrtCustomOp*) { return "LoraGated"; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 4; };
    GetInputType = [](const OrtCustomOp*, size_t index) {
      return index == 2 || index == 3 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    };
    GetOutputType = [](const OrtCustomOp*, size_t index) {
      return index == 0 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    };
    CreateKernelV2 = CreateLora<true>;
    KernelComputeV2 = ComputeLora;
  }
};

struct LoraOp : LoraGatedOp {
  LoraOp() {
    GetName = [](const OrtCustomOp*) { return "Lora"; };
    CreateKernelV2 = CreateLora<false>;
    GetMayInplace = [](int** input, int** output) -> size_t {
      *input = new int[1]{1};
      *output = new int[1]{0};
      return 1;
    };
    ReleaseMayInplace = [](int* input, int* output) {
      delete[] input;
      delete[] output;
    };
  }
};

}  // namespace

EXPORTED OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static OrderOp order;
  static LoraOp lora;
  static LoraGatedOp gated;
  const OrtApi* api = base->GetApi(kApiVersion);
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF(api->CreateCustomOpDomain("loraplex", &domain));
  RETURN_IF(api->CustomOpDomain_Add(domain, &order));
  RETURN_IF(api->CustomOpDomain_Add(domain, &lora));
  RETURN_IF(api->CustomOpDomain_Add(domain, &gated));
  return api->AddCustomOpDomain(options, domain);
}
