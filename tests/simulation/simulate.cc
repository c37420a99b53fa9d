// Runs the simulator from the command line, for long hunts and for looking at one seed.
//
//   simulate [--runs N] [--seed FIRST] [--trouble NAME] [--plant NAME] [--every-rule] [--stop]
//            [--trace]
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <optional>
#include <string_view>

#include "tests/simulation/simulation.h"

namespace {

using namespace towline::simulation;  // NOLINT(google-build-using-namespace): a program of its own.

struct Arguments {
  std::uint64_t runs = 1000;
  std::uint64_t seed = 1;
  std::optional<Trouble> trouble;
  Plant plant = Plant::kNone;
  bool every_rule = false;  // A rule that is never taken is a failure.
  bool stop = false;        // At the first that fails.
  bool trace = false;
};

/// The one of `count` names that `name` is. None: says so on standard error, and which there are.
template <typename Kind>
std::optional<Kind> named(const char* option, std::string_view name, int count) {
  for (int i = 0; i < count; ++i) {
    if (to_string(static_cast<Kind>(i)) == name) {
      return static_cast<Kind>(i);
    }
  }
  (void)std::fprintf(stderr, "simulate: %s '%.*s' is not known; there are:", option,
                     static_cast<int>(name.size()), name.data());
  for (int i = 0; i < count; ++i) {
    (void)std::fprintf(stderr, " %s", to_string(static_cast<Kind>(i)).data());
  }
  (void)std::fprintf(stderr, "\n");
  return std::nullopt;
}

bool read_number(const char* option, std::string_view text, std::uint64_t& into) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), into);
  if (error == std::errc() && end == text.data() + text.size()) {
    return true;
  }
  (void)std::fprintf(stderr, "simulate: %s '%.*s' is not a number\n", option,
                     static_cast<int>(text.size()), text.data());
  return false;
}

/// One option with its value. False: what is wrong was said.
bool set(Arguments& arguments, std::string_view name, const char* value) {
  if (name == "--runs") {
    return read_number("--runs", value, arguments.runs);
  }
  if (name == "--seed") {
    return read_number("--seed", value, arguments.seed);
  }
  if (name == "--trouble") {
    arguments.trouble = named<Trouble>("--trouble", value, kTroubles);
    return arguments.trouble.has_value();
  }
  if (name == "--plant") {
    const auto plant = named<Plant>("--plant", value, kPlants);
    arguments.plant = plant.value_or(Plant::kNone);
    return plant.has_value();
  }
  (void)std::fprintf(stderr, "simulate: there is no option '%s'\n", name.data());
  return false;
}

std::optional<Arguments> parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--trace") {
      arguments.trace = true;
    } else if (name == "--stop") {
      arguments.stop = true;
    } else if (name == "--every-rule") {
      arguments.every_rule = true;
    } else if (i + 1 == argc) {
      (void)std::fprintf(stderr, "simulate: '%s' is not known, or has no value\n", argv[i]);
      return std::nullopt;
    } else if (!set(arguments, name, argv[++i])) {
      return std::nullopt;
    }
  }
  // One trouble cannot lead everywhere, and a planted mistake may bar the way.
  arguments.every_rule |= !arguments.trouble.has_value() && arguments.plant == Plant::kNone &&
                          arguments.runs >= kRunsForEveryRule;
  return arguments;
}

/// How many were never taken.
template <typename Rules, typename Taken>
std::size_t print_rules(const char* table, const Rules& rules, const Taken& taken) {
  std::size_t count = 0;
  std::size_t wanted = 0;
  for (const auto& rule : rules) {
    if (towline::simulation::never_taken(rule)) {
      continue;
    }
    ++wanted;
    const bool was_taken = taken.contains({rule.from, rule.on});
    count += was_taken ? 1 : 0;
    if (!was_taken) {
      std::printf("  never: %s %s + %s\n", table, to_string(rule.from).data(),
                  to_string(rule.on).data());
    }
  }
  std::printf("rules taken: %s %zu of %zu\n", table, count, wanted);
  return wanted - count;
}

std::size_t print_coverage(const Coverage& coverage) {
  const std::size_t never = print_rules("source", towline::runtime::kSourceRules, coverage.source) +
                            print_rules("target", towline::runtime::kTargetRules, coverage.target) +
                            print_rules("gate", towline::runtime::kOwnershipRules, coverage.gates);
  for (const auto& [event, times] : coverage.events) {
    std::printf("  %8llu  %s\n", static_cast<unsigned long long>(times), event.c_str());
  }
  return never;
}

// ---- what is running just now -------------------------------------------------------------------

std::atomic<std::uint64_t> present_seed{0};

// A broken invariant of the shipped code ends the process: at least it says in which run.
extern "C" void say_seed(int /*signal*/) {
  char text[] = "aborted in seed 00000000000000000000\n";
  std::uint64_t seed = present_seed;
  for (char* digit = text + sizeof text - 3; *digit != ' '; --digit) {
    *digit = static_cast<char>('0' + seed % 10);
    seed /= 10;
  }
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text, sizeof text - 1);
}

/// Says now and then how far it is.
class Progress {
 public:
  explicit Progress(std::uint64_t runs) : runs_(runs) {}

  void show(std::uint64_t done, std::uint64_t failed) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < std::chrono::seconds(10)) {
      return;
    }
    shown_ = now;
    const double seconds = elapsed();
    (void)std::fprintf(stderr, "%llu of %llu runs, %.0f/s, %llu failed\n",
                       static_cast<unsigned long long>(done),
                       static_cast<unsigned long long>(runs_), static_cast<double>(done) / seconds,
                       static_cast<unsigned long long>(failed));
  }

  [[nodiscard]] double elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count();
  }

 private:
  std::uint64_t runs_;
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point shown_ = begun_;
};

}  // namespace

int main(int argc, char** argv) {
  const auto arguments = parse(argc, argv);
  if (!arguments.has_value()) {
    (void)std::fprintf(stderr,
                       "usage: simulate [--runs N] [--seed FIRST] [--trouble NAME] [--plant NAME] "
                       "[--every-rule] [--stop] [--trace]\n");
    return 2;
  }
  (void)std::signal(SIGABRT, say_seed);
  if (arguments->every_rule) {
    std::printf("every rule is wanted\n");
    (void)std::fflush(stdout);
  }
  Coverage coverage;
  Progress progress(arguments->runs);
  std::uint64_t failed = 0;
  std::uint64_t steps = 0;
  std::uint64_t done = 0;
  while (done < arguments->runs && !(arguments->stop && failed > 0)) {
    const std::uint64_t seed = arguments->seed + done++;
    present_seed = seed;
    const Trouble trouble = arguments->trouble.value_or(trouble_of(seed));
    const Result result = simulate(Setup::of(seed, trouble, arguments->plant), arguments->trace);
    coverage.add(result.coverage);
    steps += result.steps;
    if (result.violation.has_value()) {
      ++failed;
      std::printf("seed %llu trouble %s: %s\n", static_cast<unsigned long long>(seed),
                  to_string(trouble).data(), result.violation->c_str());
      (void)std::fflush(stdout);
    }
    progress.show(done, failed);
  }
  const std::size_t never = print_coverage(coverage);
  const bool missed = arguments->every_rule && never > 0;
  if (missed) {
    std::printf("every rule was wanted, and %zu were never taken\n", never);
  }
  std::printf("%llu runs in %.0f s, %llu steps, %llu failed\n",
              static_cast<unsigned long long>(done), progress.elapsed(),
              static_cast<unsigned long long>(steps), static_cast<unsigned long long>(failed));
  return failed == 0 && !missed ? 0 : 1;
}
