// The adapters' weights on the GPU: each LoraDown and LoraUp of a model has a place for `slots` adapters, and all places
// of one slot are written at once, between two steps of the engine. So an adapter comes and goes with one copy of its
// weights, while model, CUDA graphs and KV cache stay as they are.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace {

// The weights of one operator, [slots, count]; zero where no adapter has been written.
struct Weights {
  int64_t index;  // place in the model, which is the order in which `WriteSlot` expects the weights
  int64_t slots;
  size_t count;  // float16 numbers of one slot
  __half* data = nullptr;

  cudaError_t Allocate() {
    const size_t bytes = size_t(slots) * count * sizeof(__half);
    const cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&data), bytes);
    if (error == cudaSuccess) return cudaMemset(data, 0, bytes);
    cudaGetLastError();  // else the next launch reports it
    return error;
  }
};

// The operators that were created since the last AdoptBank. onnxruntime creates those of one model in one go.
std::mutex created_mutex;
std::vector<Weights*> created;

void Enlist(Weights* weights) {
  const std::lock_guard<std::mutex> lock(created_mutex);
  created.push_back(weights);
}

void Release(Weights* weights) {
  const std::lock_guard<std::mutex> lock(created_mutex);
  created.erase(std::remove(created.begin(), created.end(), weights), created.end());
  cudaFree(weights->data);
}

struct Bank {
  std::vector<Weights*> operators;
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// All operators of the model that was loaded last. The bank must be dropped before the model is; null without memory.
EXPORTED void* LoraplexAdoptBank() {
  const std::lock_guard<std::mutex> lock(created_mutex);
  std::sort(created.begin(), created.end(), [](const Weights* x, const Weights* y) { return x->index < y->index; });
  auto* bank = new (std::nothrow) Bank{created};
  created.clear();
  return bank;
}

EXPORTED void LoraplexDropBank(void* bank) { delete static_cast<Bank*>(bank); }

// Bytes of one slot of all operators.
EXPORTED uint64_t LoraplexSlotBytes(const void* bank) {
  uint64_t bytes = 0;
  for (const Weights* weights : static_cast<const Bank*>(bank)->operators)
    bytes += weights->count * sizeof(__half);
  return bytes;
}

// Write an adapter to a slot, from 1 on: A and then B of one branch after the other. Returns a cudaError_t. No step of
// the engine may run meanwhile.
EXPORTED int LoraplexWriteSlot(void* bank, int64_t slot, const void* adapter) {
  const auto* source = static_cast<const __half*>(adapter);
  for (const Weights* weights : static_cast<const Bank*>(bank)->operators) {
    if (slot < 1 || slot > weights->slots) return cudaErrorInvalidValue;
    const size_t bytes = weights->count * sizeof(__half);
    __half* target = weights->data + size_t(slot - 1) * weights->count;
    if (const cudaError_t error = cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice)) return error;
    source += weights->count;
  }
  return cudaDeviceSynchronize();
}

// Host memory that the GPU copies from several times as fast as from other; null without memory.
EXPORTED void* LoraplexAllocateHost(uint64_t bytes) {
  void* memory = nullptr;
  if (cudaMallocHost(&memory, bytes) == cudaSuccess) return memory;
  cudaGetLastError();
  return nullptr;
}

EXPORTED void LoraplexFreeHost(void* memory) { cudaFreeHost(memory); }

EXPORTED const char* LoraplexErrorText(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
