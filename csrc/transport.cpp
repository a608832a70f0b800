#include "transport.h"

#include <algorithm>
#include <atomic>

namespace guardcore {
namespace {

// weights / their sum, uniform for nullptr. Returns false if there is no mass. Weights are >= 0 and finite.
inline bool simplex(const float* weights, float* shares, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += weights ? weights[i] : 1.0;
  for (int64_t i = 0; i < count; ++i) shares[i] = static_cast<float>((weights ? weights[i] : 1.0) / total);
  return total > 0;
}

// The embeddings of a contiguous tensor, row by row.
Rows rows_of(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  const Element element = dtype == ScalarType::Float      ? Element::kFloat
                          : dtype == ScalarType::BFloat16 ? Element::kBFloat16
                                                          : Element::kHalf;
  const int64_t width = tensor.size(tensor.dim() - 1);
  return {tensor.const_data_ptr(), element, tensor.numel() / width, width};
}

// Weights as contiguous float32 of the given shape; raises at a negative or non-finite one.
std::optional<Tensor> checked_weights(const char* name, const std::optional<Tensor>& weights, int64_t rows,
                                      int64_t columns) {
  if (!weights) return std::nullopt;
  const auto sizes = weights->sizes();
  const bool fits = weights->is_cpu() && (columns < 0 ? sizes.size() == 1 && sizes[0] == rows
                                                      : sizes.size() == 2 && sizes[0] == rows && sizes[1] == columns);
  STD_TORCH_CHECK(fits, name, " must be a CPU tensor with one weight for each point");
  Tensor values = torch::stable::contiguous(torch::stable::to(*weights, ScalarType::Float));
  const float* value = values.const_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i)
    STD_TORCH_CHECK(std::isfinite(value[i]) && value[i] >= 0, name, " must be finite and >= 0, got ", value[i]);
  return values;
}

std::vector<int64_t> checked_offsets(const Tensor& cu_seqlens, int64_t total) {
  STD_TORCH_CHECK(cu_seqlens.is_cpu() && cu_seqlens.dim() == 1 && cu_seqlens.numel() > 0,
                  "cu_seqlens must be a CPU vector of B + 1 offsets");
  check_index("cu_seqlens", cu_seqlens);
  const Tensor values = torch::stable::contiguous(torch::stable::to(cu_seqlens, ScalarType::Long));
  const int64_t* first = values.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets(first, first + values.numel());
  STD_TORCH_CHECK(offsets.front() == 0 && offsets.back() == total && std::is_sorted(offsets.begin(), offsets.end()),
                  "cu_seqlens must start at 0, not decrease and end at the ", total, " packed patches");
  return offsets;
}

std::vector<int64_t> even_offsets(int64_t items, int64_t length) {
  std::vector<int64_t> offsets(items + 1);
  for (int64_t i = 0; i <= items; ++i) offsets[i] = i * length;
  return offsets;
}

}  // namespace

Options checked_options(double epsilon, int64_t max_iterations, double tolerance, std::optional<double> relaxation) {
  STD_TORCH_CHECK(std::isfinite(epsilon) && epsilon > 0, "epsilon must be a finite number > 0, got ", epsilon);
  // float32 rounds a cost to 1e-7: with a smaller epsilon that rounding would choose the plan
  STD_TORCH_CHECK(epsilon >= 1e-6, "epsilon must be >= 1e-06, what float32 costs can resolve, got ", epsilon);
  STD_TORCH_CHECK(max_iterations >= 1, "max_iterations must be >= 1, got ", max_iterations);
  STD_TORCH_CHECK(std::isfinite(tolerance) && tolerance >= 0, "tolerance must be a finite number >= 0, got ",
                  tolerance);
  STD_TORCH_CHECK(!relaxation || (std::isfinite(*relaxation) && *relaxation >= 0),
                  "relaxation must be None or a finite number >= 0");
  const double damping = relaxation ? *relaxation / (*relaxation + epsilon) : 1.0;
  return {epsilon, damping, max_iterations, tolerance};
}

void check_index(const char* name, const Tensor& index) {
  const ScalarType dtype = index.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long, name, " must be int32 or int64");
}

void check_embeddings(const Tensor& patches, int64_t patch_dims, const Tensor& prototypes, int64_t prototype_dims) {
  STD_TORCH_CHECK(patches.dim() == patch_dims, "patches must have ", patch_dims, " dimensions, got ", patches.dim());
  STD_TORCH_CHECK(prototypes.dim() == prototype_dims, "prototypes must have ", prototype_dims, " dimensions, got ",
                  prototypes.dim());
  const ScalarType dtype = patches.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                  "patches must be float32, bfloat16 or float16");
  STD_TORCH_CHECK(prototypes.scalar_type() == dtype, "prototypes must have the dtype of patches");
  STD_TORCH_CHECK(patches.is_cpu() && prototypes.is_cpu(), "patches and prototypes must be on the CPU");
  const int64_t width = patches.size(patch_dims - 1);
  STD_TORCH_CHECK(width > 0 && prototypes.size(prototype_dims - 1) == width,
                  "patches and prototypes must have one width D >= 1, got ", width, " and ",
                  prototypes.size(prototype_dims - 1));
  STD_TORCH_CHECK(prototypes.size(prototype_dims - 2) > 0, "prototypes must hold at least one prototype");
}

Tensor empty_like_on_cpu(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

Patches::Patches(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& weights)
    : patches_(torch::stable::contiguous(patches)), rows_(rows_of(patches_)) {
  const bool packed = cu_seqlens.has_value();
  start_ = packed ? checked_offsets(*cu_seqlens, patches.size(0)) : even_offsets(patches.size(0), patches.size(1));
  const auto values = checked_weights("patch_weights", weights, patches.size(0), packed ? -1 : patches.size(1));
  const float* weight = values ? values->const_data_ptr<float>() : nullptr;
  shares_.resize(total());
  mass_.resize(items());
  for (int64_t i = 0; i < items(); ++i)
    mass_[i] = simplex(weight ? weight + start(i) : nullptr, shares_.data() + start(i), count(i));
}

bool Patches::load_shares(int64_t item, Workspace& w) const {
  const int64_t n = count(item);
  std::copy(shares_.begin() + start(item), shares_.begin() + start(item) + n, w.a);
  std::fill(w.a + n, w.a + padded(n), 0.0f);
  return mass_[item];
}

bool Patches::load(int64_t item, int64_t capacity, Workspace& w) const {
  if (!load_shares(item, w)) return false;
  const int64_t inside = std::min(in_panels(count(item), capacity), count(item));
  const Rows all = rows(item);
  return kernels().pack_panels(all.slice(0, inside), w.panels, w.scratch) &&
         kernels().unit_rows(all.slice(inside, count(item) - inside), w.loose);
}

int64_t Patches::longest() const {
  int64_t longest = 0;
  for (int64_t i = 0; i < items(); ++i) longest = std::max(longest, count(i));
  return longest;
}

Prototypes::Prototypes(const Tensor& prototypes, const std::optional<Tensor>& weights)
    : capacity_(prototypes.size(prototypes.dim() - 2)), width_(prototypes.size(prototypes.dim() - 1)) {
  const bool single = prototypes.dim() == 2;
  const int64_t categories = single ? 1 : prototypes.size(0);
  const auto values = single ? checked_weights("prototype_weights", weights, capacity_, -1)
                             : checked_weights("prototype_weights", weights, categories, capacity_);
  const float* weight = values ? values->const_data_ptr<float>() : nullptr;
  const Tensor contiguous = torch::stable::contiguous(prototypes);
  const Rows rows = rows_of(contiguous);
  unit_.reset(new float[categories * capacity_ * prototype_stride(width_)]);
  panels_.reset(new float[categories * padded(capacity_) * width_]);
  shares_.resize(categories * capacity_);
  origin_.resize(categories * capacity_);
  count_.resize(categories);
  sound_.resize(categories);
  torch::stable::parallel_for(0, categories, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      keep(c, rows.slice(c * capacity_, capacity_), weight ? weight + c * capacity_ : nullptr);
  });
}

void Prototypes::keep(int64_t category, const Rows& rows, const float* weights) {
  const int64_t base = category * capacity_;
  float* unit = unit_.get() + base * prototype_stride(width_);
  bool sound = simplex(weights, shares_.data() + base, capacity_);
  int64_t kept = 0;
  for (int64_t m = 0; m < capacity_; ++m) {
    sound &= kernels().unit_rows(rows.slice(m, 1),
                                 unit + kept * prototype_stride(width_));  // bad values count at weight 0 too
    const float share = shares_[base + m];
    shares_[base + kept] = share;
    origin_[base + kept] = m;
    kept += share > 0;
  }
  kernels().pack_units(unit, kept, width_, panels_.get() + category * padded(capacity_) * width_);
  count_[category] = kept;
  sound_[category] = sound;
}

std::vector<Task> all_tasks(const Patches& patches, const Prototypes& prototypes) {
  const int64_t items = patches.items(), categories = prototypes.categories();
  const int64_t threads = torch::stable::get_num_threads(), wanted = threads > 1 ? 8 * threads : 1;
  const int64_t cuts = std::min(categories, std::max<int64_t>(1, (wanted + items - 1) / std::max<int64_t>(items, 1)));
  std::vector<Task> tasks(items * cuts);
  for (int64_t i = 0; i < items * cuts; ++i)
    tasks[i] = {i / cuts, i % cuts * categories / cuts, (i % cuts + 1) * categories / cuts};
  return tasks;
}

namespace {

Problem problem_of(const Patches& patches, int64_t item, const Prototypes& prototypes, int64_t category,
                   const Options& options, Workspace& w) {
  const Problem q(patches.count(item), prototypes.count(category), options);
  const float* share = prototypes.shares(category);
  std::copy(share, share + q.prototypes, w.b);
  std::fill(w.b + q.prototypes, w.b + padded(q.prototypes), 0.0f);
  return q;
}

void cost_of_loose(const Prototypes& prototypes, int64_t category, const Problem& q, Workspace& w) {
  const int64_t inside = in_panels(q.patches, prototypes.capacity()), loose = q.patches - inside;
  if (loose <= 0) return;
  kernels().loose_cost_tile(prototypes.panels(category), q.prototypes, w.loose, loose, prototypes.width(),
                            depth_of(q.patches), w.loose_cost, w.cost + inside, q.stride);
}

}  // namespace

Problem cost_of_pair(const Patches& patches, int64_t item, const Prototypes& prototypes, int64_t category,
                     const Options& options, Workspace& w) {
  const Problem q = problem_of(patches, item, prototypes, category, options, w);
  kernels().cost_tile(w.panels, in_panels(q.patches, prototypes.capacity()), prototypes.unit(category), q.prototypes,
                      patches.width(), depth_of(q.patches), w.cost, q.stride);
  cost_of_loose(prototypes, category, q, w);
  kernels().row_minima(q, w.cost, w.shift);
  return q;
}

std::optional<Problem> cost_by_all_threads(const Patches& patches, const Prototypes& bank, const Options& options,
                                           Workspace& w) {
  if (!patches.load_shares(0, w) || !bank.sound(0)) return std::nullopt;
  constexpr int64_t kColumns = 4 * kLanes;  // of a task
  const Problem q = problem_of(patches, 0, bank, 0, options, w);
  const Rows rows = patches.rows(0);
  const int64_t inside = std::min(in_panels(q.patches, bank.capacity()), q.patches);
  std::atomic<bool> sound{kernels().unit_rows(rows.slice(inside, q.patches - inside), w.loose)};
  torch::stable::parallel_for(0, (inside + kColumns - 1) / kColumns, 1, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(kLanes * rows.width);
    const int64_t n = first * kColumns, count = std::min(last * kColumns, inside) - n;
    float* panels = w.panels + n * rows.width;
    if (!kernels().pack_panels(rows.slice(n, count), panels, scratch.data())) sound = false;
    kernels().cost_tile(panels, padded(count), bank.unit(0), q.prototypes, rows.width, depth_of(q.patches), w.cost + n,
                        q.stride);
  });
  if (!sound) return std::nullopt;
  cost_of_loose(bank, 0, q, w);
  kernels().row_minima(q, w.cost, w.shift);
  return q;
}

}  // namespace guardcore
