// Runs a fuzz target on the files of its corpus, so that every input that was ever interesting is a
// regression test, with any compiler.
//
//   fuzz_NAME FOLDER|FILE...
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> files_of(const std::vector<fs::path>& arguments) {
  std::vector<fs::path> files;
  for (const fs::path& argument : arguments) {
    if (fs::is_directory(argument)) {
      files.insert(files.end(), fs::directory_iterator(argument), fs::directory_iterator());
    } else {
      files.push_back(argument);
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool replay(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open()) {
    std::printf("%s cannot be read\n", path.c_str());
    return false;
  }
  // On standard error first: the target ends the program when it finds something.
  (void)std::fprintf(stderr, "%s (%zu bytes)\n", path.c_str(), bytes.size());
  // A copy of exactly this size, so that a sanitizer sees the first byte read beyond it.
  const std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<fs::path> files = files_of({argv + 1, argv + argc});
  const auto failed =
      std::count_if(files.begin(), files.end(), [](const fs::path& path) { return !replay(path); });
  const auto passed = static_cast<std::ptrdiff_t>(files.size()) - failed;
  std::printf("[cases] %td passed, %td failed, 0 skipped\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
