// Memory for what is read as fast as memory goes.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>

namespace loraplex {

// Memory for weights in huge pages, which are read up to 1.4 times as fast: a page of 4 KB needs a look-up of its own.
// Layers of different sizes share chunks; a chunk goes when its last layer does.
struct Chunk {
  static constexpr size_t kSize = size_t(64) << 20, kHugePage = size_t(2) << 20;
  uint8_t* memory;
  size_t size, used = 0;

  explicit Chunk(size_t bytes) : size((bytes + kHugePage - 1) / kHugePage * kHugePage) {
    // One huge page more than is needed, so that the first one can begin where it must; untouched, it costs nothing.
    base_ = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = (reinterpret_cast<uintptr_t>(base_) + kHugePage - 1) / kHugePage * kHugePage;
    memory = reinterpret_cast<uint8_t*>(address);
    madvise(memory, size, MADV_HUGEPAGE);
  }
  ~Chunk() { munmap(base_, size + kHugePage); }
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  static std::shared_ptr<uint8_t> Take(size_t bytes) {
    static std::mutex mutex;
    static std::weak_ptr<Chunk> newest;
    const std::lock_guard<std::mutex> lock(mutex);
    bytes = (bytes + 63) / 64 * 64;
    std::shared_ptr<Chunk> chunk = newest.lock();
    if (chunk == nullptr || chunk->used + bytes > chunk->size) {
      chunk = std::make_shared<Chunk>(std::max(bytes, kSize));
      newest = chunk;
    }
    uint8_t* found = chunk->memory + chunk->used;
    chunk->used += bytes;
    return {chunk, found};
  }

 private:
  void* base_;
};

}  // namespace loraplex
