// What the keys of each item are: visible ranges and classes by block, groups.
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "calibrated_attention.h"

namespace guardcore {
namespace {

KeyBlock describe_block(const uint8_t* key_class, const uint8_t* mask, int64_t count) {
  int64_t first = 0, end = count;
  if (mask) {
    const void* found = std::memchr(mask, 1, count);
    first = found ? static_cast<const uint8_t*>(found) - mask : count;
    while (end > first && !mask[end - 1]) --end;
  }
  uint8_t least = 255, most = 0, visible = 1;
  for (int64_t i = first; i < end; ++i) {
    least = std::min(least, key_class[i]);
    most = std::max(most, key_class[i]);
  }
  for (int64_t i = first; mask && i < end; ++i) visible &= mask[i];
  return {static_cast<uint8_t>(first), static_cast<uint8_t>(end), visible != 0, most > 0,
          least == most ? most : uint8_t{0}};
}

}  // namespace

AttentionKeys::AttentionKeys(const std::vector<ItemKeys>& items, int64_t classes) : items_(items) {
  uint8_t largest = 0;
  for (const ItemKeys& item : items) {
    largest = std::max(largest, find_blocks(item));
    find_groups(item);
  }
  STD_TORCH_CHECK(largest < classes, "key_class holds class ", static_cast<int>(largest), ", rule has only ", classes,
                  " classes");
}

void AttentionKeys::describe(int64_t item, AttentionTask& task) const {
  const ItemKeys& keys = items_[item];
  task.keys = keys.count, task.range = {0, keys.count};
  task.key_class = keys.key_class, task.key_mask = keys.mask;
  task.blocks = blocks_.data() + first_block_[item], task.any_class = any_class_[item];
  task.groups = keys.group ? groups_.data() + first_group_[item] : nullptr;
}

uint8_t AttentionKeys::find_blocks(const ItemKeys& item) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < item.count; ++i) largest = std::max(largest, item.key_class[i]);
  first_block_.push_back(static_cast<int64_t>(blocks_.size()));
  any_class_.push_back(largest > 0);
  for (int64_t k = 0; k < item.count; k += kKeyBlock)
    blocks_.push_back(
        describe_block(item.key_class + k, item.mask ? item.mask + k : nullptr, std::min(kKeyBlock, item.count - k)));
  return largest;
}

void AttentionKeys::find_groups(const ItemKeys& item) {
  first_group_.push_back(static_cast<int64_t>(groups_.size()));
  if (!item.group) return;
  std::unordered_map<int64_t, KeyGroup> seen;
  for (int32_t k = 0; k < item.count; ++k) {
    if (item.group[k] == 0) continue;
    const int32_t id = static_cast<int32_t>(seen.size()) + 1;
    KeyGroup& one = seen.try_emplace(item.group[k], KeyGroup{id, k, k}).first->second;
    one.end = k + 1;
  }
  for (int64_t k = 0; k < item.count; ++k)
    groups_.push_back(item.group[k] == 0 ? KeyGroup{0, 0, 0} : seen[item.group[k]]);
}

}  // namespace guardcore
