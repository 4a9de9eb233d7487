// How lora.cu launches its kernels: with or without overlap, and on which of two streams.

#pragma once

#include <cuda_runtime.h>

#include <algorithm>

namespace {

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

// The stream beside the engine's own. Its kernels go first: they are small, and the linear layer fills the GPU.
cudaError_t SideStream(cudaStream_t* stream) {
  static cudaStream_t side = nullptr;
  static const cudaError_t error = [] {
    int least = 0, greatest = 0;
    const cudaError_t unknown = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    return unknown ? unknown : cudaStreamCreateWithPriority(&side, cudaStreamNonBlocking, greatest);
  }();
  *stream = side;
  return error;
}

cudaError_t Follow(cudaStream_t stream, cudaStream_t first, cudaEvent_t event) {
  const cudaError_t error = cudaEventRecord(event, first);
  return error ? error : cudaStreamWaitEvent(stream, event, 0);
}

// So many blocks for each column of the grid that all together are about `most`.
unsigned Blocks(int tiles, int columns, int most) { return unsigned(std::min(tiles, std::max(most / columns, 1))); }

}  // namespace
