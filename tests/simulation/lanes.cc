#include "tests/simulation/lanes.h"

#include <algorithm>

#include "runtime/core/description.h"

namespace towline::simulation {

void fill_randomly(Random& random, std::span<std::byte> bytes) {
  for (std::byte& one : bytes) {
    one = static_cast<std::byte>(random.below(256));
  }
}

Identity::Identity(World& world) : secret(runtime::kSecretBytes) {
  Random random(world.setup.seed ^ 0x6964'656e'7469U);  // Its own: the rest of the run is as it is.
  fill_randomly(random, id);
  fill_randomly(random, secret);
  source_incarnation = random.below(1U << 30U);
  target_incarnation = source_incarnation + 1;
}

std::vector<Connection*> SourceLanes::all() const {
  std::vector<Connection*> lanes;
  if (control != nullptr) {
    lanes.push_back(control);
  }
  if (urgent != nullptr) {
    lanes.push_back(urgent);
  }
  lanes.insert(lanes.end(), bulk.begin(), bulk.end());
  return lanes;
}

std::vector<Connection*> Receivers::all() const {
  std::vector<Connection*> lanes{control};
  if (urgent != nullptr) {
    lanes.push_back(urgent);
  }
  for (const Bulk& one : bulk) {
    if (one.lane != nullptr) {
      lanes.push_back(one.lane);
    }
  }
  return lanes;
}

bool Receivers::all_attached() const {
  return urgent != nullptr &&
         std::all_of(bulk.begin(), bulk.end(), [](const Bulk& one) { return one.lane != nullptr; });
}

bool Receivers::all_markers(std::uint32_t pass) const {
  return std::all_of(bulk.begin(), bulk.end(),
                     [pass](const Bulk& one) { return one.markers >= pass; });
}

bool Receivers::all_pushed() const {
  return std::all_of(bulk.begin(), bulk.end(), [](const Bulk& one) { return one.pushed_all; });
}

}  // namespace towline::simulation
