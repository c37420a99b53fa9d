#include "base/log.h"

#include <pthread.h>
#include <spdlog/pattern_formatter.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <memory>

#include "base/error.h"
#include "base/line_writer.h"
#include "base/sync.h"

namespace towline::base {
namespace {

/// Of each of the two. Guess: some minutes of debug lines, or two seconds of a flood of them.
constexpr std::size_t kMostWaiting = 256U << 10U;
/// With the head of the line in one write of PIPE_BUF bytes: others who write into the same pipe,
/// such as a page server, do not get between.
constexpr std::size_t kLongestText = 3800;
constexpr std::size_t kLongestName = 64;
/// Of each kind that is kept.
constexpr std::size_t kMostKept = 16;

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  __builtin_unreachable();
}

std::string formatted(const std::string& pattern, const char* end, const std::string& name,
                      const LogLine& line) {
  spdlog::pattern_formatter formatter(pattern, spdlog::pattern_time_type::utc, end);
  spdlog::memory_buf_t bytes;
  formatter.format(spdlog::details::log_msg(line.at, {}, name, to_spdlog(line.level), line.text),
                   bytes);
  return {bytes.begin(), bytes.end()};
}

std::string as_it_is(const LogLine& line) {
  return line.text;
}

std::string with_its_head(const LogLine& line);
void output_failed(const LogLine& line, int error);

/// Of a process. A child by fork() has one of its own: the threads are not there, and what waits is
/// its parent's to write.
class Log {
 public:
  explicit Log(Log* before)
      : before_(before),
        name_(before == nullptr ? "towline" : before->name_in_child()),
        error_(STDERR_FILENO, "tl-log", {with_its_head, nullptr}, kMostWaiting),
        output_(STDOUT_FILENO, "tl-output", {as_it_is, output_failed}, kMostWaiting) {}

  static Log& of_process();

  void set_name(std::string name) {
    const Lock lock(mutex_);
    name_ = std::move(name);
  }

  std::string name() {
    const Lock lock(mutex_);
    return name_;
  }

  void keep(const LogLine& line) {
    const Lock lock(mutex_);
    auto& ring = line.about_owner ? kept_owners_ : kept_troubles_;
    if (ring.size() == kMostKept) {
      ring.pop_front();
    }
    ring.push_back(line);
  }

  std::vector<LogLine> kept() {
    const Lock lock(mutex_);
    std::vector<LogLine> lines(kept_owners_.begin(), kept_owners_.end());
    lines.insert(lines.end(), kept_troubles_.begin(), kept_troubles_.end());
    std::ranges::stable_sort(lines, {}, &LogLine::at);
    return lines;
  }

  LineWriter& error() { return error_; }

  LineWriter& output() { return output_; }

  void flush() {
    const Instant deadline = system_clock().now() + kLogFlush;
    output_.flush(deadline);
    error_.flush(deadline);
  }

 private:
  // After fork(), where nobody else is: the lock may have been another thread's.
  [[nodiscard]] std::string name_in_child() const UNCHECKED { return name_; }

  [[maybe_unused]] Log* const before_;  // Never used, never freed: of the process before the fork.

  Mutex mutex_;
  std::string name_ GUARDED_BY(mutex_);
  std::deque<LogLine> kept_owners_ GUARDED_BY(mutex_);
  std::deque<LogLine> kept_troubles_ GUARDED_BY(mutex_);

  LineWriter error_;
  LineWriter output_;
};

std::atomic<Log*> current{nullptr};
std::atomic<LogLevel> lowest_level{LogLevel::kInfo};

// Never destroyed: its threads may outlive main().
Log& Log::of_process() {
  static const bool made = [] {
    current = new Log(nullptr);
    ::pthread_atfork(nullptr, nullptr, [] { current = new Log(current); });
    [[maybe_unused]] const int registered = std::atexit(flush_log);
    return true;
  }();
  (void)made;
  return *current;
}

std::string with_its_head(const LogLine& line) {
  if (line.plain) {
    return line.text;
  }
  return formatted("%Y-%m-%dT%H:%M:%S.%eZ %n %l %v", "\n", Log::of_process().name(), line);
}

void output_failed(const LogLine& line, int error) {
  log(LogLevel::kError, "output.lost text={} reason={}", line.text,
      to_string(Error{ErrorKind::kFailed, error, "write", "standard output cannot be written"}));
}

// ---- values -------------------------------------------------------------------------------------

// What the first byte of a UTF-8 character says of its size; 0: it is none.
std::size_t size_after(unsigned char first) {
  if (first < 0x80) {
    return 1;
  }
  if (first < 0xc2 || first >= 0xf5) {
    return 0;
  }
  return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

// The bytes of the UTF-8 character at the front; 0: it is none.
std::size_t character_at(std::string_view text) {
  const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
  const unsigned char first = byte(0);
  const std::size_t size = size_after(first);
  if (size > text.size()) {
    return 0;
  }
  for (std::size_t at = 1; at < size; ++at) {
    if ((byte(at) & 0xc0U) != 0x80) {
      return 0;
    }
  }
  // Longer than it need be, half of a pair, or beyond the last one.
  const bool wrong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
                     (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f);
  return wrong ? 0 : size;
}

// The control characters from U+0080 to U+009F, and what some take for the end of a line.
bool is_control(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) {
    return first < 0x20 || first == 0x7f;
  }
  return (first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0) ||
         character == "\u2028" || character == "\u2029";
}

bool is_plain_word(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) {
    return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != '=';
  });
}

void append_escaped(std::string& to, std::string_view bytes) {
  for (const char one : bytes) {
    to += fmt::format("\\x{:02x}", static_cast<unsigned char>(one));
  }
}

std::string cut(std::string text) {
  if (text.size() <= kLongestText) {
    return text;
  }
  std::size_t end = kLongestText;
  while ((static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80) {
    --end;
  }
  return fmt::format("{}... ({} bytes more)", std::string_view(text).substr(0, end),
                     text.size() - end);
}

}  // namespace

std::string log_value(std::string_view text) {
  if (is_plain_word(text)) {
    return std::string(text);
  }
  std::string value = "\"";
  while (!text.empty()) {
    const std::size_t size = character_at(text);
    const std::string_view character = text.substr(0, std::max<std::size_t>(size, 1));
    text.remove_prefix(character.size());
    if (character == "\n") {
      value += "\\n";
    } else if (character == "\"" || character == "\\") {
      value += '\\';
      value += character;
    } else if (size == 0 || is_control(character)) {
      append_escaped(value, character);
    } else {
      value += character;
    }
  }
  value += '"';
  return value;
}

// ---- the log ------------------------------------------------------------------------------------

void configure_log(LogLevel lowest, std::string_view program) {
  lowest_level = lowest;
  Log::of_process().set_name(log_value(program.substr(0, kLongestName)));
}

bool log_enabled(LogLevel level) {
  return level >= lowest_level;
}

void write_log(LogLevel level, bool about_owner, std::string text) {
  LogLine line;
  line.level = level;
  line.about_owner = about_owner;
  line.at = std::chrono::system_clock::now();
  line.text = cut(std::move(text));
  Log& log = Log::of_process();
  if (about_owner || level >= LogLevel::kWarning) {
    log.keep(line);
  }
  if (log_enabled(level)) {
    log.error().put(std::move(line));
  }
}

void say_on_output(std::string text) {
  LogLine line;
  line.level = LogLevel::kError;
  line.plain = true;
  line.text = std::move(text);
  Log::of_process().output().put(std::move(line));
}

void say_on_error(std::string text) {
  LogLine line;
  line.level = LogLevel::kError;
  line.plain = true;
  line.text = std::move(text);
  Log::of_process().error().put(std::move(line));
}

void flush_log() {
  Log::of_process().flush();
}

std::vector<KeptLine> kept_log_lines() {
  std::vector<KeptLine> lines;
  for (const LogLine& line : Log::of_process().kept()) {
    lines.push_back({formatted("%Y-%m-%dT%H:%M:%S.%eZ", "", "", line), line.level, line.text});
  }
  return lines;
}

std::uint64_t dropped_log_lines() {
  return Log::of_process().error().dropped();
}

std::string_view to_string(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  __builtin_unreachable();
}

}  // namespace towline::base
