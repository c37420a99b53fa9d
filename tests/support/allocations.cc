#include "tests/support/allocations.h"

#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace towline::tests {
namespace {

std::atomic<pid_t> counted_thread{0};
std::atomic<std::uint64_t> allocations{0};

void note_allocation() {
  thread_local const pid_t self = ::gettid();
  if (counted_thread.load(std::memory_order_relaxed) == self) {
    allocations.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace

void count_allocations_of(pid_t thread) {
  allocations = 0;
  counted_thread = thread;
}

std::uint64_t counted_allocations() {
  return allocations;
}

}  // namespace towline::tests

void* operator new(std::size_t size) {
  towline::tests::note_allocation();
  void* const memory = std::malloc(size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

// Replaced with the rest: what one of them allocates, the others free.
void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  towline::tests::note_allocation();
  return std::malloc(size);
}

void operator delete(void* memory, const std::nothrow_t& /*tag*/) noexcept {
  std::free(memory);
}

void operator delete(void* memory) noexcept {
  std::free(memory);
}

void operator delete(void* memory, std::size_t /*size*/) noexcept {
  std::free(memory);
}
