// guardcore::calibrated_attention_paged on the CPU.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "calibrated_attention.h"
#include "operators.h"
#include "transport.h"

namespace guardcore {
namespace {

struct PagedInputs {
  Tensor query, key, value, page_table, query_offsets, key_lengths, key_class, rule;
  std::optional<Tensor> row_mask;

  int64_t rows() const { return query.size(0); }
  int64_t query_heads() const { return query.size(1); }
  int64_t width() const { return query.size(2); }
  int64_t pages() const { return key.size(0); }
  int64_t page_rows() const { return key.size(1); }
  int64_t kv_heads() const { return key.size(2); }
  int64_t requests() const { return page_table.size(0); }
  int64_t classes() const { return rule.size(2); }
  int64_t offset(int64_t r) const { return query_offsets.const_data_ptr<int32_t>()[r]; }
  int64_t length(int64_t r) const { return key_lengths.const_data_ptr<int32_t>()[r]; }
  const int32_t* table(int64_t r) const { return page_table.const_data_ptr<int32_t>() + r * page_table.size(1); }
};

void check_shapes(const PagedInputs& a) {
  STD_TORCH_CHECK(a.query.dim() == 3 && a.key.dim() == 4, "query must be [T, Hq, D], key_cache [P, S, Hkv, D]");
  STD_TORCH_CHECK(a.page_table.dim() == 2 && a.key_class.dim() == 2, "page_table and key_class must be [R, ...]");
  check_attention_query(a.query, a.query_heads(), a.kv_heads());
  const std::vector<int64_t> cache{a.pages(), a.page_rows(), a.kv_heads(), a.width()};
  check_attention_tensor("key_cache", a.key, cache, a.query.scalar_type());
  check_attention_tensor("value_cache", a.value, cache, a.query.scalar_type());
  STD_TORCH_CHECK(a.page_rows() >= 1, "key_cache must have pages of at least one slot");
  check_attention_tensor("page_table", a.page_table, {a.requests(), a.page_table.size(1)}, ScalarType::Int);
  check_attention_tensor("query_offsets", a.query_offsets, {a.requests() + 1}, ScalarType::Int);
  check_attention_tensor("key_lengths", a.key_lengths, {a.requests()}, ScalarType::Int);
  check_attention_tensor("key_class", a.key_class, {a.requests(), a.key_class.size(1)}, ScalarType::Byte);
  check_attention_rule(a.rule, a.requests(), a.query_heads());
  if (a.row_mask) check_attention_tensor("row_mask", *a.row_mask, {a.rows()}, ScalarType::Bool);
}

void check_request(const PagedInputs& a, int64_t r, int64_t max_query_length) {
  const int64_t rows = a.offset(r + 1) - a.offset(r), length = a.length(r), used = a.page_table.size(1);
  STD_TORCH_CHECK(rows >= 0, "query_offsets must not decrease, yet do for request ", r);
  STD_TORCH_CHECK(rows <= max_query_length, "max_query_length is ", max_query_length, ", yet request ", r, " has ",
                  rows, " rows");
  STD_TORCH_CHECK(length >= 0 && length <= a.key_class.size(1), "key_lengths must be in 0 ... ", a.key_class.size(1),
                  " (key_class has so many keys), got ", length, " at ", r);
  STD_TORCH_CHECK(length <= used * a.page_rows(), "page_table must cover key_lengths, got ", used, " pages of ",
                  a.page_rows(), " for ", length, " keys of request ", r);
  for (int64_t i = 0; i * a.page_rows() < length; ++i) {
    const int32_t page = a.table(r)[i];
    STD_TORCH_CHECK(page >= 0 && page < a.pages(), "page_table must be in 0 ... ", a.pages() - 1, " (", a.pages(),
                    " pages), got ", page, " for request ", r, " at ", i);
  }
}

void check_requests(const PagedInputs& a, int64_t max_query_length) {
  STD_TORCH_CHECK(a.offset(0) == 0 && a.offset(a.requests()) == a.rows(),
                  "query_offsets must start at 0 and end at the ", a.rows(), " rows of query, got ", a.offset(0),
                  " and ", a.offset(a.requests()));
  for (int64_t r = 0; r < a.requests(); ++r) check_request(a, r, max_query_length);
}

AttentionKeys keys_of(const PagedInputs& a) {
  std::vector<ItemKeys> items;
  for (int64_t r = 0; r < a.requests(); ++r) {
    const void* key_class = at(a.key_class, r * a.key_class.stride(0));
    items.push_back({a.length(r), static_cast<const uint8_t*>(key_class), nullptr, nullptr});
  }
  return AttentionKeys(items, a.classes());
}

KeyRows rows_of(const Tensor& cache) {
  return {cache.const_data_ptr(), cache.stride(1), element_stride(cache), cache.stride(2), cache.stride(0)};
}

// `task` for a request and its first KV head.
AttentionTask of_request(AttentionTask task, const PagedInputs& a, const AttentionResult& out, int64_t r) {
  const auto& [output, lse, mass] = out;
  const int64_t first = a.offset(r);
  task.is_causal = true;
  task.rows = a.offset(r + 1) - first, task.heads = a.query_heads() / a.kv_heads();
  task.query = at(a.query, first * a.query.stride(0));
  task.query_row = a.query.stride(0), task.query_head = a.query.stride(1);
  task.key = rows_of(a.key), task.value = rows_of(a.value);
  task.pages = a.table(r), task.page_rows = a.page_rows();
  task.rule = static_cast<const float*>(at(a.rule, a.rule.size(0) == 1 ? 0 : r * a.rule.stride(0)));
  if (a.row_mask) task.row_mask = static_cast<const uint8_t*>(at(*a.row_mask, first));
  task.start = a.length(r) - task.rows;
  task.output_row = a.query_heads() * a.width();
  task.output = const_cast<void*>(at(output, first * task.output_row));
  task.lse_row = a.query_heads(), task.lse_head = 1;
  task.lse = lse.mutable_data_ptr<float>() + first * task.lse_row;
  if (mass.size(2) > 0) task.mass = mass.mutable_data_ptr<float>() + first * task.lse_row * a.classes();
  return task;
}

}  // namespace

AttentionResult calibrated_attention_paged(Tensor query, Tensor key_cache, Tensor value_cache, Tensor page_table,
                                           Tensor query_offsets, Tensor key_lengths, Tensor key_class, Tensor rule,
                                           std::optional<Tensor> row_mask, double scale, std::optional<int64_t> window,
                                           std::optional<double> softcap, int64_t max_query_length, bool return_mass) {
  PagedInputs a{query, key_cache, value_cache, page_table, query_offsets, key_lengths, key_class, rule, row_mask};
  check_shapes(a);
  check_attention_scores(scale, window, softcap);
  for (Tensor* tensor : {&a.page_table, &a.query_offsets, &a.key_lengths, &a.rule})
    *tensor = torch::stable::contiguous(*tensor);
  a.key_class = *with_whole_rows(a.key_class), a.row_mask = with_whole_rows(a.row_mask);
  check_requests(a, max_query_length);
  const AttentionKeys keys = keys_of(a);
  const int64_t t = a.rows(), h = a.query_heads();
  const AttentionResult out{empty_like_on_cpu(query, {t, h, a.width()}, query.scalar_type()),
                            empty_like_on_cpu(query, {t, h}),
                            empty_like_on_cpu(query, {t, h, return_mass ? a.classes() : 0})};
  const AttentionTask task = attention_task(a.query, a.rule, scale, window, softcap);
  std::vector<AttentionTask> requests;
  for (int64_t r = 0; r < a.requests(); ++r) {
    if (a.offset(r + 1) == a.offset(r)) continue;
    requests.push_back(of_request(task, a, out, r));
    keys.describe(r, requests.back());
  }
  attend_all(requests, a.kv_heads());
  return out;
}

}  // namespace guardcore
