/* liger.h - everything public, in one include.
 *
 * Headers are found by their place in the tree, in the sources and after install: -I<root>, #include "liger/liger.h".
 * Everything here compiles alone as C99 and as C++11. */
#ifndef LIGER_LIGER_H
#define LIGER_LIGER_H

#include "liger/core/context.h"
#include "liger/core/reduction.h"
#include "liger/core/status.h"
#include "liger/core/tensor.h"
#include "liger/core/version.h"

#include "liger/ops/attn_res/attn_res.h"
#include "liger/ops/ce_tvd/ce_tvd.h"
#include "liger/ops/cross_entropy/cross_entropy.h"
#include "liger/ops/dyt/dyt.h"
#include "liger/ops/embedding/embedding.h"
#include "liger/ops/geglu/geglu.h"
#include "liger/ops/group_norm/group_norm.h"
#include "liger/ops/int2_matmul/int2_matmul.h"
#include "liger/ops/jsd/jsd.h"
#include "liger/ops/kl_div/kl_div.h"
#include "liger/ops/layer_norm/layer_norm.h"
#include "liger/ops/linear/linear.h"
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "liger/ops/linear_jsd/linear_jsd.h"
#include "liger/ops/linear_kl_div/linear_kl_div.h"
#include "liger/ops/linear_logprob/linear_logprob.h"
#include "liger/ops/linear_topk_kl/linear_topk_kl.h"
#include "liger/ops/logprob/logprob.h"
#include "liger/ops/mhc/mhc.h"
#include "liger/ops/modulated_rms_norm/modulated_rms_norm.h"
#include "liger/ops/multi_token_attention/multi_token_attention.h"
#include "liger/ops/policy_loss/policy_loss.h"
#include "liger/ops/poly_norm/poly_norm.h"
#include "liger/ops/preference_loss/preference_loss.h"
#include "liger/ops/relu_squared/relu_squared.h"
#include "liger/ops/rms_norm/rms_norm.h"
#include "liger/ops/rope/rope.h"
#include "liger/ops/scale/scale.h"
#include "liger/ops/softmax/softmax.h"
#include "liger/ops/sparsemax/sparsemax.h"
#include "liger/ops/swiglu/swiglu.h"
#include "liger/ops/tvd/tvd.h"

#endif
