// The LoRA branch of a linear layer as operators for onnxruntime's CUDA provider.
//
//     loraplex.Cut(slots) -> (tiles)                              attributes: slots
//
//     slots   [rows, 1]  float16   1 + index of the row's adapter, 0 for none; exact up to 2048
//     tiles   [T, 18]    int32     slot, count and rows of tiles: up to 16 rows of one adapter
//
//     loraplex.LoraDown(x, tiles) -> (scratch)                    attributes: in_features, ranks, slots, index
//     loraplex.LoraUp(base, scratch, tiles, x) -> (y)             attributes: widths, ranks, slots, index
//
//     x       [rows, K]         float16   input of the linear layer
//     base    [rows, N]         float16   its output; y takes its memory where onnxruntime allows it
//     A       [slots, M*R, K]   float16   M modules of the layer (q, k, v for one), R ranks each, padded with zeros
//     B       [slots, R, N]     float16   scale folded in
//
//     scratch[t, r] = sum_k x[t, k] * A[s(t), r, k]
//     y[t, n]       = base[t, n] + sum_r scratch[t, m(n)*R + r] * B[s(t), r, n]
//
//     loraplex.LoraUpGated: the same for a layer of gate and up, y [rows, N/2] = silu(gate) * up
//
// m(n) is the module that column n belongs to; `widths` has the columns of each module, `in_features` is K, `ranks` M*R
// for LoraDown and R for LoraUp. K, R and the widths are multiples of 8. LoraDown owns A and LoraUp B; both are written
// from outside (lora_bank.cuh). What is read of them are the weights of the adapters in use and nothing else.
//
// In a step of few rows, where launches and waiting for memory are what takes time, LoraDown runs on a stream of its
// own, beside the linear layer: onnxruntime calls it first, as long as its node has the higher number
// (`Graph::ReverseDFSFrom`). LoraUp waits for both, and takes x so that its memory is not given away until then. With
// many rows all is on one stream. Either way LoraUp is a programmatic dependent launch: it loads its part of B while what
// it waits for still runs, and nothing else.
//
// lora_operator.py compiles this; onnxruntime_custom_op.h is all it needs of onnxruntime.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <new>

#include "lora_bank.cuh"
#include "lora_call.cuh"
#include "lora_kernels.cuh"
#include "lora_launch.cuh"
#include "onnxruntime_custom_op.h"

namespace {

constexpr uint32_t kApiVersion = 22;
constexpr int kFewRows = 128;  // up to here LoraDown runs beside the linear layer
constexpr int kShrinkFewWarps = 32;
constexpr int kShrinkManyWarps = 8;
constexpr int kShrinkWarps = 4096;  // of one launch, about as many as the largest GPUs run at a time
constexpr int kExpandBlocks = 1536;

struct State {
  const OrtApi* api;
  Widths widths;
  int inputs, ranks, slots;  // of LoraDown K and M*R, of LoraUp N and R
  Weights weights;
  cudaEvent_t event;
};

OrtStatus* ComputeCut(void* state, OrtKernelContext* context) {
  const State& kernel = *static_cast<State*>(state);
  const Call call{*kernel.api, context};
  void *slots, *tiles;
  int64_t dims[2];
  cudaStream_t stream;
  RETURN_IF(call.Input(0, &slots, dims, 2));
  const int rows = int(dims[0]), most = MostTiles(rows, kernel.slots);
  const int64_t tile_dims[2] = {most, sizeof(Tile) / sizeof(int)};
  RETURN_IF(call.Output(0, &tiles, tile_dims, 2));
  RETURN_IF(call.Stream(&stream));
  if (rows == 0) return nullptr;
  return call.Result(Launch(Cut, dim3(1), dim3(kCutThreads), stream, false, static_cast<const __half*>(slots),
                            static_cast<Tile*>(tiles), rows, kernel.slots + 1, most));
}

OrtStatus* ComputeDown(void* state, OrtKernelContext* context) {
  const State& kernel = *static_cast<State*>(state);
  const Call call{*kernel.api, context};
  void *x, *tiles, *scratch;
  int64_t dims[2], tile_dims[2];
  cudaStream_t stream, side;
  RETURN_IF(call.Input(0, &x, dims, 2));
  RETURN_IF(call.Input(1, &tiles, tile_dims, 2));
  if (dims[1] != kernel.inputs) return call.OtherShape();
  const int64_t scratch_dims[2] = {dims[0], kernel.ranks};
  RETURN_IF(call.Output(0, &scratch, scratch_dims, 2));
  RETURN_IF(call.Stream(&stream));
  const int rows = int(dims[0]);
  if (rows == 0) return nullptr;
  const auto shrink = [&](auto* function, int warps, cudaStream_t where) {
    const int groups = kernel.ranks / 8, most_tiles = int(tile_dims[0]);
    return Launch(function, dim3(groups, Blocks(most_tiles, groups, kShrinkWarps / warps)), dim3(warps * 32), where,
                  false, static_cast<const __half*>(x), static_cast<const Tile*>(tiles),
                  static_cast<const __half*>(kernel.weights.data), static_cast<__half*>(scratch), kernel.inputs,
                  kernel.ranks, most_tiles);
  };
  if (rows > kFewRows) return call.Result(shrink(Shrink<kShrinkManyWarps>, kShrinkManyWarps, stream));
  RETURN_IF(call.Result(SideStream(&side)));
  RETURN_IF(call.Result(Follow(side, stream, kernel.event)));
  return call.Result(shrink(Shrink<kShrinkFewWarps>, kShrinkFewWarps, side));
}

template <bool Gated>
OrtStatus* ComputeUp(void* state, OrtKernelContext* context) {
  const State& kernel = *static_cast<State*>(state);
  const Call call{*kernel.api, context};
  void *base, *scratch, *tiles, *y;
  int64_t dims[2], scratch_dims[2], tile_dims[2];
  cudaStream_t stream, side;
  RETURN_IF(call.Input(0, &base, dims, 2));
  RETURN_IF(call.Input(1, &scratch, scratch_dims, 2));
  RETURN_IF(call.Input(2, &tiles, tile_dims, 2));
  if (dims[1] != kernel.inputs || scratch_dims[1] != kernel.ranks * kernel.widths.count) return call.OtherShape();
  const int rows = int(dims[0]), n = Gated ? kernel.inputs / 2 : kernel.inputs;
  const int64_t y_dims[2] = {rows, n};
  RETURN_IF(call.Output(0, &y, y_dims, 2));
  RETURN_IF(call.Stream(&stream));
  if (rows == 0) return nullptr;
  const bool few = rows <= kFewRows;
  if (few) {
    RETURN_IF(call.Result(SideStream(&side)));
    RETURN_IF(call.Result(Follow(stream, side, kernel.event)));
  }
  const int columns = (n + kExpandWarps * kWarpColumns - 1) / (kExpandWarps * kWarpColumns);
  const int most_tiles = int(tile_dims[0]);
  const dim3 grid(columns, Blocks(most_tiles, columns, kExpandBlocks)), block(kExpandWarps * 32);
  const auto* down = static_cast<const __half*>(scratch);
  const auto* tile = static_cast<const Tile*>(tiles);
  const __half* b = kernel.weights.data;
  auto* out = static_cast<__half*>(y);
  if constexpr (Gated) {
    return call.Result(Launch(ExpandGated, grid, block, stream, true, down, tile, b, static_cast<const __half*>(base),
                              out, n, kernel.ranks, most_tiles));
  }
  if (y != base) {
    const size_t bytes = size_t(rows) * n * sizeof(__half);
    RETURN_IF(call.Result(cudaMemcpyAsync(y, base, bytes, cudaMemcpyDeviceToDevice, stream)));
  }
  return call.Result(Launch(Expand, grid, block, stream, y == base, down, tile, b, out, n, kernel.ranks,
                            most_tiles, kernel.widths));
}

void Destroy(void* state) {
  auto* kernel = static_cast<State*>(state);
  if (kernel->weights.data != nullptr) Release(&kernel->weights);
  if (kernel->event != nullptr) cudaEventDestroy(kernel->event);
  delete kernel;
}

// Weights of `kernel->weights.count` numbers a slot, and the event.
OrtStatus* Finish(State* kernel, void** state) {
  cudaError_t error = cudaEventCreateWithFlags(&kernel->event, cudaEventDisableTiming);
  if (error == cudaSuccess) error = kernel->weights.Allocate();
  if (error != cudaSuccess) {
    const OrtApi* api = kernel->api;
    Destroy(kernel);
    return api->CreateStatus(ORT_EP_FAIL, cudaGetErrorString(error));
  }
  Enlist(&kernel->weights);
  *state = kernel;
  return nullptr;
}

OrtStatus* OutOfMemory(const OrtApi* api) { return api->CreateStatus(ORT_FAIL, "loraplex: out of memory"); }

OrtStatus* CreateCut(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** state) {
  int64_t slots;
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "slots", &slots));
  *state = new (std::nothrow) State{api, {}, 0, 0, int(slots), {}, nullptr};
  return *state ? nullptr : OutOfMemory(api);
}

OrtStatus* CreateDown(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** state) {
  int64_t inputs, ranks, slots, index;
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "in_features", &inputs));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "ranks", &ranks));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "slots", &slots));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "index", &index));
  const Weights weights{2 * index, slots, size_t(ranks * inputs)};
  auto* kernel = new (std::nothrow) State{api, {}, int(inputs), int(ranks), int(slots), weights, nullptr};
  return kernel ? Finish(kernel, state) : OutOfMemory(api);
}

OrtStatus* CreateUp(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** state) {
  int64_t columns[kMaxModules], ranks, slots, index;
  size_t count = kMaxModules;
  RETURN_IF(api->KernelInfoGetAttributeArray_int64(info, "widths", columns, &count));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "ranks", &ranks));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "slots", &slots));
  RETURN_IF(api->KernelInfoGetAttribute_int64(info, "index", &index));
  Widths widths{int(count), {}};
  int end = 0;
  for (size_t i = 0; i < count; ++i) widths.end[i] = end += int(columns[i]);
  const Weights weights{2 * index + 1, slots, size_t(ranks) * end};
  auto* kernel = new (std::nothrow) State{api, widths, end, int(ranks), int(slots), weights, nullptr};
  return kernel ? Finish(kernel, state) : OutOfMemory(api);
}

constexpr auto kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;

struct CudaOp : OrtCustomOp {
  CudaOp() : OrtCustomOp{} {
    version = kApiVersion;
    GetExecutionProviderType = [](const OrtCustomOp*) { return "CUDAExecutionProvider"; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat16; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    KernelDestroy = Destroy;
  }
};

struct CutOp : CudaOp {
  CutOp() {
    GetName = [](const OrtCustomOp*) { return "Cut"; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetInputType = [](const OrtCustomOp*, size_t) { return kFloat16; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return kInt32; };
    CreateKernelV2 = CreateCut;
    KernelComputeV2 = ComputeCut;
  }
};

struct LoraDownOp : CudaOp {
  LoraDownOp() {
    GetName = [](const OrtCustomOp*) { return "LoraDown"; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return index == 1 ? kInt32 : kFloat16; };
    CreateKernelV2 = CreateDown;
    KernelComputeV2 = ComputeDown;
  }
};

struct LoraUpGatedOp : CudaOp {
  LoraUpGatedOp() {
    GetName = [](const OrtCustomOp*) { return "LoraUpGated"; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 4; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return index == 2 ? kInt32 : kFloat16; };
    CreateKernelV2 = CreateUp;
    KernelComputeV2 = ComputeUp<true>;
  }
};

struct LoraUpOp : LoraUpGatedOp {
  LoraUpOp() {
    GetName = [](const OrtCustomOp*) { return "LoraUp"; };
    KernelComputeV2 = ComputeUp<false>;
    GetMayInplace = [](int** input, int** output) -> size_t {
      *input = new int[1]{0};
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
  static CutOp cut;
  static LoraDownOp down;
  static LoraUpOp up;
  static LoraUpGatedOp gated;
  const OrtApi* api = base->GetApi(kApiVersion);
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF(api->CreateCustomOpDomain("loraplex", &domain));
  for (const OrtCustomOp* op : {static_cast<OrtCustomOp*>(&cut), static_cast<OrtCustomOp*>(&down),
                                static_cast<OrtCustomOp*>(&up), static_cast<OrtCustomOp*>(&gated)})
    RETURN_IF(api->CustomOpDomain_Add(domain, op));
  return api->AddCustomOpDomain(options, domain);
}
