// guardcore::calibrated_attention on the CPU.
#include "calibrated_attention.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>

#include "kernels/table.h"
#include "operators.h"
#include "transport.h"

namespace guardcore {
namespace {

const void* at(const Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * tensor.element_size();
}

// Beyond these bounds no position changes anything, and sums of positions stay within int64.
constexpr int64_t kFar = int64_t{1} << 60;

// Row 0's position.
int64_t start_of(const AttentionInputs& a, int64_t item) {
  const int64_t start = a.query_start ? a.query_start->const_data_ptr<int64_t>()[item] : a.keys() - a.rows();
  return std::clamp(start, -kFar, kFar);
}

AttentionTask task_of(const AttentionInputs& a, const AttentionKeys& keys, const AttentionResult& out, int64_t item,
                      int64_t head) {
  const auto& [output, lse, mass] = out;
  const ScalarType dtype = a.query.scalar_type();
  const int64_t heads = a.query_heads() / a.kv_heads(), first = head * heads;
  const int64_t row = item * a.query_heads() + first, rule_item = a.rule.size(0) == 1 ? 0 : item;
  AttentionTask t{};
  t.element = dtype == ScalarType::Float      ? Element::kFloat
              : dtype == ScalarType::BFloat16 ? Element::kBFloat16
                                              : Element::kHalf;
  t.width = a.width(), t.keys = a.keys(), t.rows = a.rows(), t.heads = heads, t.classes = a.classes();
  t.query = at(a.query, item * a.query.stride(0) + first * a.query.stride(1));
  t.key = at(a.key, item * a.key.stride(0) + head * a.key.stride(1));
  t.value = at(a.value, item * a.value.stride(0) + head * a.value.stride(1));
  t.query_row = a.query.stride(2), t.query_head = a.query.stride(1);
  t.key_row = a.key.stride(2), t.value_row = a.value.stride(2);
  t.rule = a.rule.const_data_ptr<float>() + (rule_item * a.query_heads() + first) * t.classes * 3;
  t.key_class = a.key_class.const_data_ptr<uint8_t>() + item * t.keys;
  if (a.row_mask) t.row_mask = static_cast<const uint8_t*>(at(*a.row_mask, item * t.rows));
  if (a.key_mask) t.key_mask = static_cast<const uint8_t*>(at(*a.key_mask, item * t.keys));
  t.blocks = keys.blocks(item), t.any_class = keys.any_class(item), t.groups = keys.groups(item);
  t.is_causal = a.is_causal, t.start = start_of(a, item);
  t.window = std::min(a.window.value_or(2 * kFar), 2 * kFar);  // no window: one that no position leaves
  t.scale = static_cast<float>(a.scale), t.softcap = static_cast<float>(a.softcap.value_or(0));
  t.output = const_cast<void*>(at(output, (item * t.rows * a.query_heads() + first) * t.width));
  t.output_row = a.query_heads() * t.width;
  t.lse = lse.mutable_data_ptr<float>() + row * t.rows;
  if (mass.size(3) > 0) t.mass = mass.mutable_data_ptr<float>() + row * t.rows * t.classes;
  return t;
}

struct AlignedDelete {
  void operator()(float* p) const { operator delete[](p, std::align_val_t{64}); }
};

// Slots that a thread takes at a time: a full team where there are enough of them for all threads. The block of slots
// that a row belongs to, and with it every sum, does not depend on this.
int64_t slots_at_a_time(int64_t heads, int64_t slots, int64_t threads) {
  const int64_t block = kernels().attention_block, blocks = heads * ((slots + block - 1) / block);
  return block * std::clamp<int64_t>(blocks / (4 * threads), 1, kernels().attention_team);
}

// Later rows of a causal attention see more keys: they go first, and what is left over at the end is short.
void attend_all(const AttentionInputs& a, const AttentionKeys& keys, const AttentionResult& out) {
  const int64_t heads = a.items() * a.kv_heads(), slots = a.rows() * (a.query_heads() / a.kv_heads());
  const int64_t threads = torch::stable::get_num_threads(), step = slots_at_a_time(heads, slots, threads);
  const int64_t steps = (slots + step - 1) / step, count = heads * steps;
  const int64_t scratch_size = kernels().attention_scratch(a.width(), a.classes());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, count), 1, [&](int64_t, int64_t) {
    std::unique_ptr<float[], AlignedDelete> scratch;
    for (int64_t i = next++; i < count; i = next++) {
      if (!scratch) scratch.reset(new (std::align_val_t{64}) float[scratch_size]);
      const int64_t head = i % heads, first = (steps - 1 - i / heads) * step;
      const AttentionTask task = task_of(a, keys, out, head / a.kv_heads(), head % a.kv_heads());
      kernels().attend(task, first, std::min(step, slots - first), scratch.get());
    }
  });
}

}  // namespace

AttentionResult calibrated_attention(Tensor query, Tensor key, Tensor value, Tensor key_class, Tensor rule,
                                     std::optional<Tensor> row_mask, std::optional<Tensor> key_mask,
                                     std::optional<Tensor> key_group, std::optional<Tensor> query_start,
                                     bool is_causal, double scale, std::optional<int64_t> window,
                                     std::optional<double> softcap, bool return_mass) {
  const AttentionInputs a = checked_attention({query, key, value, key_class, rule, row_mask, key_mask, key_group,
                                               query_start, is_causal, scale, window, softcap});
  const AttentionKeys keys(a);
  const int64_t b = a.items(), h = a.query_heads(), q = a.rows();
  const AttentionResult out{empty_like_on_cpu(query, {b, q, h, a.width()}, query.scalar_type()),
                            empty_like_on_cpu(query, {b, h, q}),
                            empty_like_on_cpu(query, {b, h, q, return_mass ? a.classes() : 0})};
  if (b * h * q > 0) attend_all(a, keys, out);
  return out;
}

}  // namespace guardcore
