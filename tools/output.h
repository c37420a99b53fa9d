#pragma once

#include <cstdio>
#include <string>

/// What a person or a program reads. It may go to a full disk, or to a pipe that nobody reads: then
/// it is lost, and whatever is being moved goes on.
namespace towline::tools {

void put(std::FILE* out, const std::string& text);

/// Everything that was put into standard output is there. If not, standard error says so.
[[nodiscard]] bool output_is_written();

}  // namespace towline::tools
