// The host side that the calibrated attention operators share: what the keys of each item are, and the loop over heads.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/calibrated_attention_task.h"

namespace guardcore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises unless the tensor is on the CPU and has this shape and dtype.
void check_attention_tensor(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
                            ScalarType dtype);
// Raises unless query has a dtype of the kernels, a width, and a multiple of the keys' heads.
void check_attention_query(const Tensor& query, int64_t query_heads, int64_t kv_heads);
// Raises unless rule is [1 or items, heads, 1 ... 256, 3].
void check_attention_rule(const Tensor& rule, int64_t items, int64_t heads);
void check_attention_scores(double scale, std::optional<int64_t> window, std::optional<double> softcap);

// Raw memory at an element of a tensor.
const void* at(const Tensor& tensor, int64_t index);
// The distance of a row's elements; 1 for a single one, whatever its stride is.
int64_t element_stride(const Tensor& tensor);
// The tensor, or a copy if its rows have gaps between their elements; null stays null.
std::optional<Tensor> with_whole_rows(const std::optional<Tensor>& tensor);

// What the operators have in common, as a task whose pointers are still to be set.
AttentionTask attention_task(const Tensor& query, const Tensor& rule, double scale, std::optional<int64_t> window,
                             std::optional<double> softcap);
// Beyond these bounds no position changes anything, and sums of positions stay within int64.
constexpr int64_t kFar = int64_t{1} << 60;

// The keys of an item: classes, and what hides or groups them, null for nothing.
struct ItemKeys {
  int64_t count;
  const uint8_t* key_class;
  const uint8_t* mask;
  const int64_t* group;
};

// What the keys of each item are, independent of heads.
class AttentionKeys {
 public:
  // Raises at a class without a rule.
  AttentionKeys(const std::vector<ItemKeys>& items, int64_t classes);

  // Tells a task what the keys of its item are.
  void describe(int64_t item, AttentionTask& task) const;

 private:
  uint8_t find_blocks(const ItemKeys& item);
  void find_groups(const ItemKeys& item);

  std::vector<ItemKeys> items_;
  std::vector<int64_t> first_block_, first_group_;
  std::vector<KeyBlock> blocks_;
  std::vector<uint8_t> any_class_;
  std::vector<KeyGroup> groups_;
};

// Runs the tasks of all items, each given for the first of its KV heads, on torch's threads.
void attend_all(const std::vector<AttentionTask>& items, int64_t kv_heads);

}  // namespace guardcore
