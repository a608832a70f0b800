// What both calibrated attention operators check, and how they read tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "calibrated_attention.h"

namespace guardcore {

void check_attention_tensor(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
                            ScalarType dtype) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && sizes.size() == shape.size() &&
                      std::equal(shape.begin(), shape.end(), sizes.begin()),
                  name, " must be a CPU tensor of the shape and dtype that the contract of calibrated attention names");
}

void check_attention_query(const Tensor& query, int64_t query_heads, int64_t kv_heads) {
  const ScalarType dtype = query.scalar_type();
  STD_TORCH_CHECK(query.is_cpu(), "query must be a CPU tensor");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                  "query must be float32, bfloat16 or float16");
  STD_TORCH_CHECK(query.size(-1) >= 1, "query must have at least one dimension a head");
  STD_TORCH_CHECK(kv_heads >= 1 && query_heads % kv_heads == 0, "query has ", query_heads, " heads, which the ",
                  kv_heads, " of the keys do not divide");
}

void check_attention_rule(const Tensor& rule, int64_t items, int64_t heads) {
  STD_TORCH_CHECK(rule.dim() == 4 && (rule.size(0) == 1 || rule.size(0) == items),
                  "rule must be [1 or B, Hq, G, 3]: one for all or one for each item");
  check_attention_tensor("rule", rule, {rule.size(0), heads, rule.size(2), 3}, ScalarType::Float);
  STD_TORCH_CHECK(rule.size(2) >= 1 && rule.size(2) <= 256, "rule must have 1 to 256 classes, got ", rule.size(2));
}

void check_attention_scores(double scale, std::optional<int64_t> window, std::optional<double> softcap) {
  STD_TORCH_CHECK(std::isfinite(scale) && scale > 0, "scale must be a finite number > 0, got ", scale);
  STD_TORCH_CHECK(!window || *window >= 1, "window must be None or >= 1");
  STD_TORCH_CHECK(!softcap || (std::isfinite(*softcap) && *softcap > 0), "softcap must be None or a finite number > 0");
}

const void* at(const Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * tensor.element_size();
}

int64_t element_stride(const Tensor& tensor) { return tensor.size(-1) == 1 ? 1 : tensor.stride(-1); }

std::optional<Tensor> with_whole_rows(const std::optional<Tensor>& tensor) {
  return !tensor || element_stride(*tensor) == 1 ? tensor : torch::stable::contiguous(*tensor);
}

AttentionTask attention_task(const Tensor& query, const Tensor& rule, double scale, std::optional<int64_t> window,
                             std::optional<double> softcap) {
  const ScalarType dtype = query.scalar_type();
  AttentionTask task{};
  task.element = dtype == ScalarType::Float      ? Element::kFloat
                 : dtype == ScalarType::BFloat16 ? Element::kBFloat16
                                                 : Element::kHalf;
  task.width = query.size(-1), task.classes = rule.size(2);
  task.query_element = element_stride(query);
  task.window = std::min(window.value_or(2 * kFar), 2 * kFar);  // no window: one that no position leaves
  task.scale = static_cast<float>(scale), task.softcap = static_cast<float>(softcap.value_or(0));
  return task;
}

}  // namespace guardcore
