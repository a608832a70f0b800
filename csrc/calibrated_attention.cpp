// guardcore::calibrated_attention on the CPU.
#include "calibrated_attention.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>

#include "operators.h"
#include "transport.h"

namespace guardcore {
namespace {

struct DenseInputs {
  Tensor query, key, value, key_class, rule;
  std::optional<Tensor> row_mask, key_mask, key_group, query_start;

  int64_t items() const { return query.size(0); }
  int64_t query_heads() const { return query.size(1); }
  int64_t rows() const { return query.size(2); }
  int64_t width() const { return query.size(3); }
  int64_t kv_heads() const { return key.size(1); }
  int64_t keys() const { return key.size(2); }
  int64_t classes() const { return rule.size(2); }
};

void check(const DenseInputs& a) {
  for (const Tensor* tensor : {&a.query, &a.key, &a.value})
    STD_TORCH_CHECK(tensor->dim() == 4, "query, key and value must be CPU tensors [B, H, L, D]");
  check_attention_query(a.query, a.query_heads(), a.kv_heads());
  const std::vector<int64_t> cache{a.items(), a.kv_heads(), a.keys(), a.width()}, keys{a.items(), a.keys()};
  check_attention_tensor("key", a.key, cache, a.query.scalar_type());
  check_attention_tensor("value", a.value, cache, a.query.scalar_type());
  STD_TORCH_CHECK(a.keys() < std::numeric_limits<int32_t>::max(), "key must have fewer than 2^31 rows");
  check_attention_tensor("key_class", a.key_class, keys, ScalarType::Byte);
  check_attention_rule(a.rule, a.items(), a.query_heads());
  if (a.row_mask) check_attention_tensor("row_mask", *a.row_mask, {a.items(), a.rows()}, ScalarType::Bool);
  if (a.key_mask) check_attention_tensor("key_mask", *a.key_mask, keys, ScalarType::Bool);
  if (a.key_group) check_attention_tensor("key_group", *a.key_group, keys, ScalarType::Long);
  if (a.query_start) check_attention_tensor("query_start", *a.query_start, {a.items()}, ScalarType::Long);
}

template <class T>
const T* row(const std::optional<Tensor>& tensor, int64_t index) {
  return tensor ? static_cast<const T*>(at(*tensor, index * tensor->stride(0))) : nullptr;
}

AttentionKeys keys_of(const DenseInputs& a) {
  std::vector<ItemKeys> items;
  for (int64_t b = 0; b < a.items(); ++b)
    items.push_back(
        {a.keys(), row<uint8_t>(a.key_class, b), row<uint8_t>(a.key_mask, b), row<int64_t>(a.key_group, b)});
  return AttentionKeys(items, a.classes());
}

// Strides of key or value; an item's rows lie one after the other.
KeyRows rows_of(const Tensor& tensor, int64_t item) {
  return {at(tensor, item * tensor.stride(0)), tensor.stride(2), element_stride(tensor), tensor.stride(1), 0};
}

// `task` for an item and its first KV head.
AttentionTask of_item(AttentionTask task, const DenseInputs& a, const AttentionResult& out, int64_t b) {
  const auto& [output, lse, mass] = out;
  const int64_t first = b * a.query_heads() * a.rows();
  task.rows = a.rows(), task.heads = a.query_heads() / a.kv_heads();
  task.query = at(a.query, b * a.query.stride(0));
  task.query_row = a.query.stride(2), task.query_head = a.query.stride(1);
  task.key = rows_of(a.key, b), task.value = rows_of(a.value, b);
  task.rule = static_cast<const float*>(at(a.rule, a.rule.size(0) == 1 ? 0 : b * a.rule.stride(0)));
  task.row_mask = row<uint8_t>(a.row_mask, b);
  const int64_t start = a.query_start ? *row<int64_t>(a.query_start, b) : a.keys() - a.rows();
  task.start = std::clamp(start, -kFar, kFar);
  task.output = const_cast<void*>(at(output, first * a.width())), task.output_row = a.query_heads() * a.width();
  task.lse = lse.mutable_data_ptr<float>() + first, task.lse_row = 1, task.lse_head = a.rows();
  if (mass.size(3) > 0) task.mass = mass.mutable_data_ptr<float>() + first * a.classes();
  return task;
}

}  // namespace

AttentionResult calibrated_attention(Tensor query, Tensor key, Tensor value, Tensor key_class, Tensor rule,
                                     std::optional<Tensor> row_mask, std::optional<Tensor> key_mask,
                                     std::optional<Tensor> key_group, std::optional<Tensor> query_start, bool is_causal,
                                     double scale, std::optional<int64_t> window, std::optional<double> softcap,
                                     bool return_mass) {
  DenseInputs a{query, key, value, key_class, rule, row_mask, key_mask, key_group, query_start};
  check(a);
  check_attention_scores(scale, window, softcap);
  STD_TORCH_CHECK(is_causal || (!window && !key_group), "window and key_group need is_causal");
  a.key_class = *with_whole_rows(a.key_class), a.rule = torch::stable::contiguous(a.rule);
  for (auto* tensor : {&a.row_mask, &a.key_mask, &a.key_group}) *tensor = with_whole_rows(*tensor);
  const AttentionKeys keys = keys_of(a);
  const int64_t b = a.items(), h = a.query_heads(), q = a.rows();
  const AttentionResult out{empty_like_on_cpu(query, {b, q, h, a.width()}, query.scalar_type()),
                            empty_like_on_cpu(query, {b, h, q}),
                            empty_like_on_cpu(query, {b, h, q, return_mass ? a.classes() : 0})};
  AttentionTask task = attention_task(a.query, a.rule, scale, window, softcap);
  task.is_causal = is_causal;
  std::vector<AttentionTask> items;
  for (int64_t i = 0; i < b && h * q > 0; ++i) {
    items.push_back(of_item(task, a, out, i));
    keys.describe(i, items.back());
  }
  attend_all(items, a.kv_heads());
  return out;
}

}  // namespace guardcore
