// The host side of calibrated attention: checked inputs, and the task of each KV head.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/calibrated_attention_task.h"

namespace guardcore {

using torch::stable::Tensor;

struct AttentionInputs {
  Tensor query, key, value, key_class, rule;
  std::optional<Tensor> row_mask, key_mask, key_group, query_start;
  bool is_causal;
  double scale;
  std::optional<int64_t> window;
  std::optional<double> softcap;

  int64_t items() const { return query.size(0); }
  int64_t query_heads() const { return query.size(1); }
  int64_t rows() const { return query.size(2); }
  int64_t width() const { return query.size(3); }
  int64_t kv_heads() const { return key.size(1); }
  int64_t keys() const { return key.size(2); }
  int64_t classes() const { return rule.size(2); }
};

// Raises at an argument that does not fit, then brings all of them into layouts that the kernels read.
AttentionInputs checked_attention(AttentionInputs inputs);

// What the keys of each item are, independent of heads.
class AttentionKeys {
 public:
  // Raises at a class without a rule.
  explicit AttentionKeys(const AttentionInputs& inputs);

  const KeyBlock* blocks(int64_t item) const { return blocks_.data() + item * blocks_of_item_; }
  bool any_class(int64_t item) const { return any_class_[item]; }
  const KeyGroup* groups(int64_t item) const { return groups_.empty() ? nullptr : groups_.data() + item * keys_; }

 private:
  void find_blocks(const AttentionInputs& inputs);
  void find_groups(const int64_t* group, KeyGroup* to) const;

  int64_t keys_, blocks_of_item_;
  std::vector<KeyBlock> blocks_;
  std::vector<uint8_t> any_class_;
  std::vector<KeyGroup> groups_;
};

}  // namespace guardcore
