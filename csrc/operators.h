// The operators as the dispatcher sees them; schemas and meanings are in guardcore/ops/.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace guardcore {

using torch::stable::Tensor;

// distance, patch_cost, patch_score, objective, iterations, marginal_error, f, g
using SinkhornResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// group_mass, group_cost, iterations, marginal_error
using JointResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// cleared, bound, distance, patch_cost, patch_score, objective, iterations, marginal_error
using ScreenResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// output [B, Q, Hq, D] or, paged, [T, Hq, D]; lse, mass
using AttentionResult = std::tuple<Tensor, Tensor, Tensor>;

SinkhornResult sinkhorn(Tensor patches, Tensor prototypes, std::optional<Tensor> patch_weights,
                        std::optional<Tensor> prototype_weights, double epsilon, int64_t max_iterations,
                        double tolerance, std::optional<double> relaxation);

SinkhornResult sinkhorn_packed(Tensor patches, Tensor cu_seqlens, Tensor prototypes,
                               std::optional<Tensor> patch_weights, std::optional<Tensor> prototype_weights,
                               double epsilon, int64_t max_iterations, double tolerance,
                               std::optional<double> relaxation);

JointResult joint_sinkhorn(Tensor patches, Tensor prototypes, Tensor group, std::optional<Tensor> patch_weights,
                           std::optional<Tensor> prototype_weights, int64_t num_groups, double epsilon,
                           int64_t max_iterations, double tolerance, std::optional<double> relaxation);

JointResult joint_sinkhorn_packed(Tensor patches, Tensor cu_seqlens, Tensor prototypes, Tensor group,
                                  std::optional<Tensor> patch_weights, std::optional<Tensor> prototype_weights,
                                  int64_t num_groups, double epsilon, int64_t max_iterations, double tolerance,
                                  std::optional<double> relaxation);

ScreenResult sinkhorn_screen(Tensor patches, Tensor prototypes, Tensor threshold, std::optional<Tensor> patch_weights,
                             std::optional<Tensor> prototype_weights, bool by_distance, double epsilon,
                             int64_t max_iterations, double tolerance, std::optional<double> relaxation);

ScreenResult sinkhorn_screen_packed(Tensor patches, Tensor cu_seqlens, Tensor prototypes, Tensor threshold,
                                    std::optional<Tensor> patch_weights, std::optional<Tensor> prototype_weights,
                                    bool by_distance, double epsilon, int64_t max_iterations, double tolerance,
                                    std::optional<double> relaxation);

AttentionResult calibrated_attention(Tensor query, Tensor key, Tensor value, Tensor key_class, Tensor rule,
                                     std::optional<Tensor> row_mask, std::optional<Tensor> key_mask,
                                     std::optional<Tensor> key_group, std::optional<Tensor> query_start, bool is_causal,
                                     double scale, std::optional<int64_t> window, std::optional<double> softcap,
                                     bool return_mass);

AttentionResult calibrated_attention_paged(Tensor query, Tensor key_cache, Tensor value_cache, Tensor page_table,
                                           Tensor query_offsets, Tensor key_lengths, Tensor key_class, Tensor rule,
                                           std::optional<Tensor> row_mask, double scale, std::optional<int64_t> window,
                                           std::optional<double> softcap, int64_t max_query_length, bool return_mass);

}  // namespace guardcore
