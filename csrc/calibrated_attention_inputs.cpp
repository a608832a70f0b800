#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "calibrated_attention.h"

namespace guardcore {
namespace {

using torch::headeronly::ScalarType;

void check_shape(const char* name, const Tensor& tensor, std::vector<int64_t> shape, ScalarType dtype) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && sizes.size() == shape.size() &&
                      std::equal(shape.begin(), shape.end(), sizes.begin()),
                  name, " must be a CPU tensor of the shape and dtype that the contract of calibrated_attention names");
}

void check_queries_and_keys(const AttentionInputs& a) {
  for (const Tensor* tensor : {&a.query, &a.key, &a.value})
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->dim() == 4, "query, key and value must be CPU tensors [B, H, L, D]");
  const ScalarType dtype = a.query.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                  "query must be float32, bfloat16 or float16");
  check_shape("key", a.key, {a.items(), a.kv_heads(), a.keys(), a.width()}, dtype);
  check_shape("value", a.value, {a.items(), a.kv_heads(), a.keys(), a.width()}, dtype);
  STD_TORCH_CHECK(a.width() >= 1, "query must have at least one dimension a head");
  STD_TORCH_CHECK(a.kv_heads() >= 1 && a.query_heads() % a.kv_heads() == 0, "query has ", a.query_heads(),
                  " heads, which key's ", a.kv_heads(), " do not divide");
  STD_TORCH_CHECK(a.keys() < std::numeric_limits<int32_t>::max(), "key must have fewer than 2^31 rows");
}

void check_rule(const AttentionInputs& a) {
  STD_TORCH_CHECK(a.rule.dim() == 4 && (a.rule.size(0) == 1 || a.rule.size(0) == a.items()),
                  "rule must be [1 or B, Hq, G, 3]");
  check_shape("rule", a.rule, {a.rule.size(0), a.query_heads(), a.classes(), 3}, ScalarType::Float);
  STD_TORCH_CHECK(a.classes() >= 1 && a.classes() <= 256, "rule must have 1 to 256 classes, got ", a.classes());
}

void check_scalars(const AttentionInputs& a) {
  STD_TORCH_CHECK(std::isfinite(a.scale) && a.scale > 0, "scale must be a finite number > 0, got ", a.scale);
  STD_TORCH_CHECK(!a.window || *a.window >= 1, "window must be None or >= 1");
  STD_TORCH_CHECK(!a.softcap || (std::isfinite(*a.softcap) && *a.softcap > 0),
                  "softcap must be None or a finite number > 0");
  STD_TORCH_CHECK(a.is_causal || (!a.window && !a.key_group), "window and key_group need is_causal");
}

// The kernels read a row's elements one after the other; the other strides are the caller's.
void straighten(Tensor& tensor) {
  if (tensor.stride(3) != 1 && tensor.size(3) != 1) tensor = torch::stable::contiguous(tensor);
}

void straighten(std::optional<Tensor>& tensor) {
  if (tensor) tensor = torch::stable::contiguous(*tensor);
}

}  // namespace

AttentionInputs checked_attention(AttentionInputs a) {
  check_queries_and_keys(a);
  check_shape("key_class", a.key_class, {a.items(), a.keys()}, ScalarType::Byte);
  check_rule(a);
  if (a.row_mask) check_shape("row_mask", *a.row_mask, {a.items(), a.rows()}, ScalarType::Bool);
  if (a.key_mask) check_shape("key_mask", *a.key_mask, {a.items(), a.keys()}, ScalarType::Bool);
  if (a.key_group) check_shape("key_group", *a.key_group, {a.items(), a.keys()}, ScalarType::Long);
  if (a.query_start) check_shape("query_start", *a.query_start, {a.items()}, ScalarType::Long);
  check_scalars(a);
  for (Tensor* tensor : {&a.query, &a.key, &a.value}) straighten(*tensor);
  for (auto* tensor : {&a.row_mask, &a.key_mask, &a.key_group, &a.query_start}) straighten(*tensor);
  a.key_class = torch::stable::contiguous(a.key_class);
  a.rule = torch::stable::contiguous(a.rule);
  return a;
}

AttentionKeys::AttentionKeys(const AttentionInputs& inputs)
    : keys_(inputs.keys()), blocks_of_item_((keys_ + kKeyBlock - 1) / kKeyBlock) {
  find_blocks(inputs);
  if (!inputs.key_group) return;
  groups_.resize(inputs.items() * keys_);
  for (int64_t b = 0; b < inputs.items(); ++b)
    find_groups(inputs.key_group->const_data_ptr<int64_t>() + b * keys_, groups_.data() + b * keys_);
}

void AttentionKeys::find_blocks(const AttentionInputs& inputs) {
  const uint8_t* key_class = inputs.key_class.const_data_ptr<uint8_t>();
  const bool* key_mask = inputs.key_mask ? inputs.key_mask->const_data_ptr<bool>() : nullptr;
  uint8_t largest = 0;
  for (int64_t b = 0; b < inputs.items(); ++b) {
    uint8_t of_item = 0;
    for (int64_t k = 0; k < keys_; k += kKeyBlock) {
      const int64_t first = b * keys_ + k, end = b * keys_ + std::min(k + kKeyBlock, keys_);
      uint8_t most = 0;
      for (int64_t i = first; i < end; ++i) most = std::max(most, key_class[i]);
      const int64_t visible = key_mask ? std::count(key_mask + first, key_mask + end, true) : end - first;
      blocks_.push_back({visible > 0, visible == end - first, most > 0});
      of_item = std::max(of_item, most);
    }
    any_class_.push_back(of_item > 0);
    largest = std::max(largest, of_item);
  }
  STD_TORCH_CHECK(largest < inputs.classes(), "key_class holds class ", static_cast<int>(largest), ", rule has only ",
                  inputs.classes(), " classes");
}

void AttentionKeys::find_groups(const int64_t* group, KeyGroup* to) const {
  std::unordered_map<int64_t, KeyGroup> seen;
  for (int32_t k = 0; k < keys_; ++k) {
    if (group[k] == 0) continue;
    const int32_t id = static_cast<int32_t>(seen.size()) + 1;
    KeyGroup& one = seen.try_emplace(group[k], KeyGroup{id, k, k}).first->second;
    one.end = k + 1;
  }
  for (int64_t k = 0; k < keys_; ++k) to[k] = group[k] == 0 ? KeyGroup{0, 0, 0} : seen[group[k]];
}

}  // namespace guardcore
