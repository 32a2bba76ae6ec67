/* mhc_ref.h - what mhc is, in double. Tests only. */
#ifndef LIGER_OPS_MHC_REF_H
#define LIGER_OPS_MHC_REF_H

#include "tests/harness/op_cases.h"

struct mhc_ref {
    int64_t tokens, hc, c, tmax;
    double rms_eps, pre_eps, sinkhorn_eps, post_mult;
    const double *x, *phi, *b, *alpha[3]; /* of pre, post, res */
};
/* Results and upstreams; of gradients too. Each may be NULL: nobody asks, or zeros. */
struct mhc_ref_results {
    double *h_pre, *h_post, *h_res, *x_in, *mix, *rstd;
};
struct mhc_ref_gradients {
    double *dx, *dphi, *db, *dalpha[3];
};

void mhc_coeffs_forward_ref(const struct mhc_ref *p, const struct mhc_ref_results *to);
/* `up` holds the upstreams of h_pre, h_post, h_res and x_in, and forward's mix and rstd. */
void mhc_coeffs_backward_ref(const struct mhc_ref *p, const struct mhc_ref_results *up, const double *dx_so_far,
                             const struct mhc_ref_gradients *to);
void mhc_pre_forward_ref(const struct mhc_ref *p, const double *h_pre, double *y);
void mhc_pre_backward_ref(const struct mhc_ref *p, const double *dy, const double *h_pre, double *dx, double *dh_pre);
void mhc_post_res_forward_ref(const struct mhc_ref *p, const double *f, const double *h_post, const double *h_res,
                              double *y);
void mhc_post_res_backward_ref(const struct mhc_ref *p, const double *dy, const double *f, const double *h_post,
                               const double *h_res, double *dx, double *df, double *dh_post, double *dh_res);
/* In f32. */
void mhc_coeffs_forward_naive(const struct mhc_ref *p, const struct mhc_ref_results *to);
void mhc_coeffs_backward_naive(const struct mhc_ref *p, const struct mhc_ref_results *up, const double *dx_so_far,
                               const struct mhc_ref_gradients *to);
void mhc_pre_forward_naive(const struct mhc_ref *p, const double *h_pre, double *y);
void mhc_pre_backward_naive(const struct mhc_ref *p, const double *dy, const double *h_pre, double *dx, double *dh_pre);
void mhc_post_res_forward_naive(const struct mhc_ref *p, const double *f, const double *h_post, const double *h_res,
                                double *y);
void mhc_post_res_backward_naive(const struct mhc_ref *p, const double *dy, const double *f, const double *h_post,
                                 const double *h_res, double *dx, double *df, double *dh_post, double *dh_res);

#endif
