#include "runtime/standby/record.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "runtime/core/description.h"
#include "runtime/link/secure.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using std::chrono::milliseconds;

constexpr std::uint64_t kMostLanes = 16;
constexpr std::uint64_t kMostAddresses = 64;
constexpr std::uint64_t kLongestMs = 3'600'000;
constexpr std::size_t kMaxSecretBytes = 4096;
constexpr std::size_t kMaxTextBytes = 4096;

base::Err<base::Error> corrupt_record(std::string what) {
  return fail(ErrorKind::kCorrupt, "standby record", std::move(what));
}

Expected<std::uint64_t> bounded(const Section& section, const char* name, std::uint64_t first,
                                std::uint64_t last) {
  const auto value = TRY(section.get(name));
  if (value < first || value > last) {
    return corrupt_record(fmt::format("{}[{}] {} is {}, and may be {} to {}", section.device,
                                      section.instance, name, value, first, last));
  }
  return value;
}

Expected<std::string> bounded_text(const Section& section, const char* name) {
  auto text = TRY(section.get_text(name));
  if (text.size() > kMaxTextBytes) {
    return corrupt_record(fmt::format("{} of {} bytes", name, text.size()));
  }
  return text;
}

void put_options(Section& section, const MigrationOptions& options) {
  const auto ms = [](milliseconds time) { return static_cast<std::uint64_t>(time.count()); };
  section.put("bulk-lanes", options.bulk_lanes);
  section.put("postcopy-bandwidth", options.max_postcopy_bandwidth);
  section.put("auto-recover", options.auto_recover ? 1 : 0);
  section.put("heartbeat-ms", ms(options.heartbeat));
  section.put("patience-ms", ms(options.patience));
  section.put("frozen-patience-ms", ms(options.frozen_patience));
  section.put("connect-timeout-ms", ms(options.connect_timeout));
  section.put("handshake-timeout-ms", ms(options.handshake_timeout));
  section.put("reconnect-deadline-s",
              static_cast<std::uint64_t>(options.reconnect_deadline.count()));
  if (options.secret.has_value()) {
    section.put_bytes("secret", std::as_bytes(std::span(*options.secret)));
  }
}

Expected<MigrationOptions> get_options(const Section& section) {
  MigrationOptions options;
  const auto ms = [&section](const char* name) -> Expected<milliseconds> {
    return milliseconds(TRY(bounded(section, name, 1, kLongestMs)));
  };
  options.bulk_lanes =
      static_cast<std::uint32_t>(TRY(bounded(section, "bulk-lanes", 1, kMostLanes)));
  options.max_postcopy_bandwidth = TRY(section.get("postcopy-bandwidth"));
  options.auto_recover = TRY(bounded(section, "auto-recover", 0, 1)) == 1;
  options.heartbeat = TRY(ms("heartbeat-ms"));
  options.patience = TRY(ms("patience-ms"));
  options.frozen_patience = TRY(ms("frozen-patience-ms"));
  options.connect_timeout = TRY(ms("connect-timeout-ms"));
  options.handshake_timeout = TRY(ms("handshake-timeout-ms"));
  options.reconnect_deadline =
      std::chrono::seconds(TRY(bounded(section, "reconnect-deadline-s", 0, 1ULL << 30U)));
  if (section.has("secret")) {
    const auto bytes = TRY(section.get_bytes("secret"));
    if (bytes.empty() || bytes.size() > kMaxSecretBytes) {
      return corrupt_record(fmt::format("a secret of {} bytes", bytes.size()));
    }
    options.secret = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return options;
}

Section region_section(const StandbyRecord::MemoryRegion& region, std::uint32_t number) {
  Section section;
  section.device = "region";
  section.instance = number;
  section.put_text("name", region.name);
  section.put("start", region.start);
  section.put("size", region.size);
  section.put("page-size", region.page_size);
  section.put("backing", static_cast<std::uint64_t>(region.backing));
  section.put("file", region.file);
  section.put("offset", region.offset);
  return section;
}

Expected<StandbyRecord::MemoryRegion> get_region(const Section& section, std::uint64_t files) {
  StandbyRecord::MemoryRegion region;
  region.name = TRY(bounded_text(section, "name"));
  region.page_size = TRY(section.get("page-size"));
  if (region.page_size != base::kSmallPage.value && region.page_size != base::kHugePage.value) {
    return corrupt_record(
        fmt::format("region {} has pages of {} bytes", section.instance, region.page_size));
  }
  region.size = TRY(bounded(section, "size", region.page_size, kMaxStandbyBytes));
  region.start = TRY(bounded(section, "start", 0, ~0ULL - region.size));
  region.offset = TRY(bounded(section, "offset", 0, kMaxStandbyBytes));
  region.file = TRY(bounded(section, "file", 0, files - 1));
  if (region.size % region.page_size != 0 || region.offset % region.page_size != 0) {
    return corrupt_record(fmt::format("region {} does not hold whole pages", section.instance));
  }
  const auto backing = TRY(section.get("backing"));
  if (backing != static_cast<std::uint64_t>(Backing::kMemfd) &&
      backing != static_cast<std::uint64_t>(Backing::kHugetlb)) {
    return corrupt_record(fmt::format("region {} is not in a file", section.instance));
  }
  region.backing = static_cast<Backing>(backing);
  return region;
}

base::Outcome get_regions(const MachineState& sections, std::uint64_t files,
                          StandbyRecord& record) {
  const std::size_t count = sections.count("region");
  if (count == 0 || count > kMaxStandbyRegions || files == 0 || files > kMaxStandbyFiles) {
    return corrupt_record(fmt::format("{} regions in {} files", count, files));
  }
  std::uint64_t total = 0;
  for (std::uint32_t number = 0; number < count; ++number) {
    const Section* section = sections.find("region", number);
    if (section == nullptr) {
      return corrupt_record(fmt::format("region {} of {} is missing", number, count));
    }
    record.regions.push_back(TRY(get_region(*section, files)));
    total += record.regions.back().size;  // Each is at most 2^46, and there are few.
  }
  if (total > kMaxStandbyBytes) {
    return corrupt_record(fmt::format("{} bytes of memory", total));
  }
  return base::Done{};
}

base::Outcome get_addresses(const MachineState& sections, StandbyRecord& record) {
  const std::size_t count = sections.count("address");
  if (count == 0 || count > kMostAddresses) {
    return corrupt_record(fmt::format("{} addresses", count));
  }
  for (std::uint32_t number = 0; number < count; ++number) {
    const Section* section = sections.find("address", number);
    if (section == nullptr) {
      return corrupt_record(fmt::format("address {} of {} is missing", number, count));
    }
    const std::string text = TRY(bounded_text(*section, "uri"));
    const auto uri = Uri::parse(text);
    if (!uri.ok()) {
      return corrupt_record(uri.error().detail);
    }
    if (number == 0) {
      record.target = uri.value();
    } else {
      record.options.alternates.push_back(uri.value());
    }
  }
  return base::Done{};
}

}  // namespace

Expected<std::vector<std::byte>> encode_record(const StandbyRecord& record) {
  MachineState sections;
  Section guard;
  guard.device = "guard";
  guard.put_bytes("id", record.id);
  guard.put("incarnation", record.incarnation);
  guard.put("target-incarnation", record.target_incarnation);
  guard.put_bytes("session-secret", record.session_secret);
  put_options(guard, record.options);
  guard.put_bytes("shape", TRY(encode(record.shape)));
  sections.sections.push_back(std::move(guard));
  std::vector<Uri> addresses{record.target};
  addresses.insert(addresses.end(), record.options.alternates.begin(),
                   record.options.alternates.end());
  for (std::uint32_t number = 0; number < addresses.size(); ++number) {
    Section address;
    address.device = "address";
    address.instance = number;
    address.put_text("uri", addresses[number].to_string());
    sections.sections.push_back(std::move(address));
  }
  for (std::uint32_t number = 0; number < record.regions.size(); ++number) {
    sections.sections.push_back(region_section(record.regions[number], number));
  }
  auto encoded = TRY(encode(sections));
  if (encoded.size() > kMaxRecordBytes) {
    return fail(ErrorKind::kFailed, "standby record",
                fmt::format("{} bytes; {} are allowed", encoded.size(), kMaxRecordBytes));
  }
  return encoded;
}

Expected<StandbyRecord> decode_record(std::span<const std::byte> bytes, std::uint64_t files) {
  if (bytes.size() > kMaxRecordBytes) {
    return corrupt_record(fmt::format("{} bytes; {} are allowed", bytes.size(), kMaxRecordBytes));
  }
  const auto sections = TRY(decode(bytes));
  const Section* guard = sections.find("guard");
  if (guard == nullptr) {
    return corrupt_record("there is no section 'guard'");
  }
  StandbyRecord record;
  const auto id = TRY(guard->get_bytes("id", record.id.size()));
  std::copy(id.begin(), id.end(), record.id.begin());
  record.incarnation = TRY(guard->get("incarnation"));
  record.target_incarnation = TRY(guard->get("target-incarnation"));
  const auto secret = TRY(guard->get_bytes("session-secret", kSecretBytes));
  record.session_secret.assign(secret.begin(), secret.end());
  record.options = TRY(get_options(*guard));
  const auto shape = TRY(guard->get_bytes("shape"));
  record.shape = TRY(decode(shape));
  TRY(get_addresses(sections, record));
  TRY(get_regions(sections, files, record));
  return record;
}

}  // namespace towline::runtime
