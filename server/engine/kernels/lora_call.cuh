// What onnxruntime hands to a kernel of lora.cu: tensors and a stream.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "onnxruntime_custom_op.h"

#define RETURN_IF(expression)                            \
  do {                                                   \
    if (OrtStatus* status = (expression)) return status; \
  } while (0)

namespace {

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

  OrtStatus* OtherShape() const {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, "loraplex: a linear layer has another shape than was linked");
  }

  OrtStatus* Result(cudaError_t error) const {
    return error == cudaSuccess ? nullptr : api.CreateStatus(ORT_EP_FAIL, cudaGetErrorString(error));
  }
};

}  // namespace
