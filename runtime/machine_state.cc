#include "runtime/machine_state.h"

#include <algorithm>
#include <cstring>
#include <istream>
#include <ostream>
#include <set>
#include <streambuf>
#include <unordered_set>
#include <utility>

#include <cereal/archives/portable_binary.hpp>
#include <cereal/cereal.hpp>
#include <fmt/format.h>

// The encoding, all little-endian, written and read through cereal's portable archive:
//
//   u8 1 (little-endian) · u32 magic · u16 format · u32 sections · section…
//   section: name · u32 instance · u32 version · u32 fields · field… · u32 subsections · section…
//   field:   name · u8 type · u32 length · bytes
//   name:    u8 length (1..64) · bytes, each one of [a-z0-9._-]
//
// Every count is compared with the bytes that are left before anything is sized by it.

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;

constexpr std::uint32_t kMagic = 0x534d4c54;  // "TLMS"
constexpr std::uint16_t kFormat = 1;
constexpr std::uint8_t kLittleEndian = 1;  // As cereal's portable archive begins.
constexpr std::size_t kHeaderBytes = 1 + 4 + 2 + 4;

// The fewest bytes that one of these can take; what is left, divided by it, bounds a count.
constexpr std::size_t kLeastFieldBytes = 2 + 1 + 4;
constexpr std::size_t kLeastSectionBytes = 2 + 4 + 4 + 4 + 4;

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), is_name_character);
}

/// A name as it may be shown to a person, whatever a peer put into it.
std::string printable(std::string_view name) {
  std::string shown(name.substr(0, kMaxNameBytes));
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return !is_name_character(c); }, '?');
  return shown;
}

std::string place(const Section& section) {
  return fmt::format("{}[{}] v{}", printable(section.device), section.instance, section.version);
}

std::string_view to_string(FieldType type) {
  switch (type) {
    case FieldType::kUnsigned:
      return "unsigned";
    case FieldType::kBytes:
      return "bytes";
    case FieldType::kText:
      return "text";
    case FieldType::kWords64:
      return "words64";
  }
  return "unknown";
}

bool fits(FieldType type, std::size_t size) {
  switch (type) {
    case FieldType::kUnsigned:
      return size == 8;
    case FieldType::kWords64:
      return size % 8 == 0;
    case FieldType::kBytes:
    case FieldType::kText:
      return true;
  }
  return false;
}

std::uint64_t little_endian(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i > 0; --i) {
    value = value << 8U | std::to_integer<std::uint64_t>(bytes[i - 1]);
  }
  return value;
}

const Field* find_field(const Section& section, std::string_view name) {
  const auto found = std::find_if(section.fields.begin(), section.fields.end(),
                                  [&](const Field& field) { return field.name == name; });
  return found == section.fields.end() ? nullptr : &*found;
}

base::Expected<const Field*> find_typed(const Section& section, std::string_view name,
                                        FieldType type) {
  const Field* field = find_field(section, name);
  if (field == nullptr) {
    return fail(ErrorKind::kCorrupt, "machine state",
                fmt::format("{}: field '{}' is missing", place(section), name));
  }
  if (field->type != type) {
    return fail(ErrorKind::kCorrupt, "machine state",
                fmt::format("{}: field '{}' is of type {}, expected {}", place(section), name,
                            to_string(field->type), to_string(type)));
  }
  return field;
}

// ---- writing ------------------------------------------------------------------------------------

/// A stream buffer that appends to a vector.
class GrowingBuffer final : public std::streambuf {
 public:
  std::vector<std::byte> take() { return std::move(bytes_); }

  [[nodiscard]] std::size_t size() const { return bytes_.size(); }

 protected:
  std::streamsize xsputn(const char* from, std::streamsize count) override {
    const auto* first = reinterpret_cast<const std::byte*>(from);
    bytes_.insert(bytes_.end(), first, first + count);
    return count;
  }

  int_type overflow(int_type c) override {
    bytes_.push_back(static_cast<std::byte>(c));
    return c;
  }

 private:
  std::vector<std::byte> bytes_;
};

class Writer {
 public:
  Writer()
      : stream_(&buffer_),
        archive_(stream_, cereal::PortableBinaryOutputArchive::Options::LittleEndian()) {}

  void number(auto value) { archive_(value); }

  void bytes(const void* data, std::size_t size) {
    // cereal takes a mutable pointer for both directions and only reads here.
    archive_(cereal::binary_data(static_cast<const char*>(data), size));
  }

  void name(const std::string& text) {
    number(static_cast<std::uint8_t>(text.size()));
    bytes(text.data(), text.size());
  }

  void section(const Section& section) {
    name(section.device);
    number(section.instance);
    number(section.version);
    number(static_cast<std::uint32_t>(section.fields.size()));
    for (const Field& field : section.fields) {
      name(field.name);
      number(static_cast<std::uint8_t>(field.type));
      number(static_cast<std::uint32_t>(field.bytes.size()));
      bytes(field.bytes.data(), field.bytes.size());
    }
    number(static_cast<std::uint32_t>(section.subsections.size()));
    for (const Section& below : section.subsections) {
      this->section(below);
    }
  }

  std::vector<std::byte> take() { return buffer_.take(); }

 private:
  GrowingBuffer buffer_;
  std::ostream stream_;
  cereal::PortableBinaryOutputArchive archive_;
};

base::Err<base::Error> too_large(std::string what) {
  return fail(ErrorKind::kFailed, "encode machine state", std::move(what));
}

base::Outcome check_section(const Section& section, bool top, std::size_t& total) {
  if (!is_name(section.device)) {
    return too_large(fmt::format("'{}' is no section name", printable(section.device)));
  }
  if (section.fields.size() > kMaxFields || section.subsections.size() > kMaxSections) {
    return too_large(fmt::format("{} has more than {} fields or {} subsections", place(section),
                                 kMaxFields, kMaxSections));
  }
  if (!top && !section.subsections.empty()) {
    return too_large(fmt::format("subsection {} has subsections", place(section)));
  }
  total += kLeastSectionBytes + section.device.size();
  for (const Field& field : section.fields) {
    if (!is_name(field.name) || !fits(field.type, field.bytes.size())) {
      return too_large(fmt::format("{}: field '{}' has a bad name or size", place(section),
                                   printable(field.name)));
    }
    total += kLeastFieldBytes + field.name.size() + field.bytes.size();
  }
  for (const Section& below : section.subsections) {
    TRY(check_section(below, false, total));
  }
  return base::Done{};
}

// ---- reading ------------------------------------------------------------------------------------

/// A stream buffer over borrowed bytes.
class BorrowedBuffer final : public std::streambuf {
 public:
  explicit BorrowedBuffer(std::span<const std::byte> bytes) {
    // A get area is never written through; std::streambuf's pointers predate const.
    char* first = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));
    setg(first, first, first + bytes.size());
  }

  [[nodiscard]] std::size_t left() const { return static_cast<std::size_t>(egptr() - gptr()); }

  [[nodiscard]] std::size_t offset() const { return static_cast<std::size_t>(gptr() - eback()); }
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes)
      : buffer_(bytes), stream_(&buffer_), archive_(stream_) {}

  [[nodiscard]] std::size_t left() const { return buffer_.left(); }

  [[nodiscard]] base::Err<base::Error> corrupt(std::string_view what) const {
    std::string where = section_ == nullptr ? "" : place(*section_) + " ";
    if (field_ != nullptr) {
      where += fmt::format("field '{}' ", printable(field_->name));
    }
    return fail(ErrorKind::kCorrupt, "decode machine state",
                fmt::format("{}at offset {}: {}", where, buffer_.offset(), what));
  }

  template <typename T>
  base::Expected<T> number(const char* what) {
    if (left() < sizeof(T)) {
      return corrupt(fmt::format("{} bytes are left, '{}' takes {}", left(), what, sizeof(T)));
    }
    T value{};
    archive_(value);
    return value;
  }

  /// A count of things that take `least` bytes each at the least.
  base::Expected<std::uint32_t> count(const char* what, std::size_t limit, std::size_t least) {
    const auto value = TRY(number<std::uint32_t>(what));
    if (value > limit || value > left() / least) {
      return corrupt(fmt::format("{} {} cannot be: at most {} are allowed and {} bytes are left",
                                 value, what, limit, left()));
    }
    return value;
  }

  base::Expected<std::string> name(const char* what) {
    const auto size = TRY(number<std::uint8_t>(what));
    if (size == 0 || size > kMaxNameBytes || size > left()) {
      return corrupt(fmt::format("a {} of {} bytes; 1 to {} are allowed and {} are left", what,
                                 size, kMaxNameBytes, left()));
    }
    std::string text(size, '\0');
    archive_(cereal::binary_data(text.data(), text.size()));
    if (!is_name(text)) {
      return corrupt(fmt::format("'{}' is no {}", printable(text), what));
    }
    return text;
  }

  base::Outcome field(Field& field) {
    field.name = TRY(name("field name"));
    field_ = &field;
    const auto type = TRY(number<std::uint8_t>("field type"));
    if (type > static_cast<std::uint8_t>(FieldType::kWords64)) {
      return corrupt(fmt::format("unknown field type {}", type));
    }
    field.type = static_cast<FieldType>(type);
    const auto size = TRY(count("field bytes", kMaxStateBytes, 1));
    if (!fits(field.type, size)) {
      return corrupt(fmt::format("{} bytes do not make a {}", size, to_string(field.type)));
    }
    field.bytes.resize(size);
    archive_(cereal::binary_data(reinterpret_cast<char*>(field.bytes.data()), size));
    return base::Done{};
  }

  base::Outcome fields(Section& section) {
    const auto count_here = TRY(count("fields", kMaxFields, kLeastFieldBytes));
    section.fields.reserve(count_here);
    std::unordered_set<std::string_view> seen;  // Of names in fields that stay where they are.
    for (std::uint32_t i = 0; i < count_here; ++i) {
      Field& next = section.fields.emplace_back();
      TRY(field(next));
      if (!seen.insert(next.name).second) {
        return corrupt("the field is there twice");
      }
      field_ = nullptr;
    }
    return base::Done{};
  }

  base::Outcome section(bool top, Section& section) {
    section_ = nullptr;
    section.device = TRY(name("section name"));
    section_ = &section;
    section.instance = TRY(number<std::uint32_t>("instance"));
    section.version = TRY(number<std::uint32_t>("version"));
    TRY(fields(section));
    const auto below = TRY(count("subsections", top ? kMaxSections : 0, kLeastSectionBytes));
    return sections(below, false, section.subsections);
  }

  base::Outcome sections(std::uint32_t count_here, bool top, std::vector<Section>& into) {
    into.reserve(count_here);
    std::set<std::pair<std::string_view, std::uint32_t>> seen;
    for (std::uint32_t i = 0; i < count_here; ++i) {
      Section& next = into.emplace_back();
      TRY(section(top, next));
      if (!seen.insert({next.device, next.instance}).second) {
        return corrupt(fmt::format("section {} is there twice", place(next)));
      }
    }
    section_ = nullptr;
    return base::Done{};
  }

  base::Expected<MachineState> machine() {
    if (TRY(number<std::uint32_t>("magic")) != kMagic) {
      return corrupt("this is no machine state");
    }
    const auto format = TRY(number<std::uint16_t>("format"));
    if (format != kFormat) {
      return corrupt(fmt::format("format {} is unknown; this program reads {}", format, kFormat));
    }
    const auto count_here = TRY(count("sections", kMaxSections, kLeastSectionBytes));
    MachineState state;
    TRY(sections(count_here, true, state.sections));
    if (left() != 0) {
      return corrupt(fmt::format("{} bytes follow the last section", left()));
    }
    return state;
  }

 private:
  BorrowedBuffer buffer_;
  std::istream stream_;
  cereal::PortableBinaryInputArchive archive_;
  // What is being read, for the error. Both stay where they are: room was reserved for all.
  const Section* section_ = nullptr;
  const Field* field_ = nullptr;
};

// ---- showing ------------------------------------------------------------------------------------

}  // namespace

void Section::put(std::string_view name, std::uint64_t value) {
  Field field{std::string(name), FieldType::kUnsigned, std::vector<std::byte>(8)};
  for (std::size_t i = 0; i < 8; ++i) {
    field.bytes[i] = static_cast<std::byte>(value >> (8 * i) & 0xffU);
  }
  fields.push_back(std::move(field));
}

void Section::put_bytes(std::string_view name, std::span<const std::byte> value) {
  fields.push_back(Field{std::string(name), FieldType::kBytes, {value.begin(), value.end()}});
}

void Section::put_text(std::string_view name, std::string_view value) {
  const auto bytes = std::as_bytes(std::span(value));
  fields.push_back(Field{std::string(name), FieldType::kText, {bytes.begin(), bytes.end()}});
}

base::Expected<std::uint64_t> Section::get(std::string_view name) const {
  const Field* field = TRY(find_typed(*this, name, FieldType::kUnsigned));
  if (field->bytes.size() != 8) {
    return fail(ErrorKind::kCorrupt, "machine state",
                fmt::format("{}: field '{}' has {} bytes, expected 8", place(*this), name,
                            field->bytes.size()));
  }
  return little_endian(field->bytes);
}

base::Expected<std::span<const std::byte>> Section::get_bytes(std::string_view name) const {
  const Field* field = TRY(find_typed(*this, name, FieldType::kBytes));
  return std::span<const std::byte>(field->bytes);
}

base::Expected<std::span<const std::byte>> Section::get_bytes(std::string_view name,
                                                              std::size_t size) const {
  const auto bytes = TRY(get_bytes(name));
  if (bytes.size() != size) {
    return fail(ErrorKind::kCorrupt, "machine state",
                fmt::format("{}: field '{}' has {} bytes, expected {}", place(*this), name,
                            bytes.size(), size));
  }
  return bytes;
}

base::Expected<std::string> Section::get_text(std::string_view name) const {
  const Field* field = TRY(find_typed(*this, name, FieldType::kText));
  return std::string(reinterpret_cast<const char*>(field->bytes.data()), field->bytes.size());
}

bool Section::has(std::string_view name) const {
  return find_field(*this, name) != nullptr;
}

const Section* MachineState::find(std::string_view device, std::uint32_t instance) const {
  const auto found = std::find_if(sections.begin(), sections.end(), [&](const Section& section) {
    return section.device == device && section.instance == instance;
  });
  return found == sections.end() ? nullptr : &*found;
}

std::size_t MachineState::count(std::string_view device) const {
  return static_cast<std::size_t>(
      std::count_if(sections.begin(), sections.end(),
                    [&](const Section& section) { return section.device == device; }));
}

base::Expected<std::vector<std::byte>> encode(const MachineState& state) {
  if (state.sections.size() > kMaxSections) {
    return too_large(
        fmt::format("{} sections; {} are allowed", state.sections.size(), kMaxSections));
  }
  std::size_t total = kHeaderBytes;
  for (const Section& section : state.sections) {
    TRY(check_section(section, true, total));
  }
  if (total > kMaxStateBytes) {
    return too_large(fmt::format("{} bytes; {} are allowed", total, kMaxStateBytes));
  }
  Writer writer;
  writer.number(kMagic);
  writer.number(kFormat);
  writer.number(static_cast<std::uint32_t>(state.sections.size()));
  for (const Section& section : state.sections) {
    writer.section(section);
  }
  return writer.take();
}

base::Expected<MachineState> decode(std::span<const std::byte> bytes) {
  if (bytes.size() > kMaxStateBytes) {
    return fail(ErrorKind::kCorrupt, "decode machine state",
                fmt::format("{} bytes; {} are allowed", bytes.size(), kMaxStateBytes));
  }
  // cereal's archive obeys a first byte that says big-endian; ours never does.
  if (bytes.size() < kHeaderBytes ||
      std::to_integer<std::uint8_t>(bytes.front()) != kLittleEndian) {
    return fail(ErrorKind::kCorrupt, "decode machine state",
                "at offset 0: this is no machine state");
  }
  try {
    return Reader(bytes).machine();
  } catch (const cereal::Exception& broken) {
    return fail(ErrorKind::kCorrupt, "decode machine state", broken.what());
  }
}

}  // namespace towline::runtime
