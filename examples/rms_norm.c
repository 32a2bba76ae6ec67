/* rms_norm.c - the library from C: normalise two rows on the CPU.
 *
 *   cc examples/rms_norm.c -I. -Lbuild/dev -lliger -o rms_norm && LD_LIBRARY_PATH=build/dev ./rms_norm */
#include <liger/liger.h>
#include <stdio.h>

int main(void) {
    float x[2][4] = {{1, 2, 3, 4}, {-4, 3, -2, 1}}, weight[4] = {1, 1, 2, 2}, y[2][4], rstd[2];
    const int64_t matrix[] = {2, 4}, row[] = {4}, column[] = {2};

    liger_context *context;
    liger_status status = liger_context_create(NULL, &context); /* all defaults: the CPU, its best instruction set */
    if (status == LIGER_OK) {
        liger_rms_norm_forward_args args = LIGER_RMS_NORM_FORWARD_ARGS_INIT;
        args.x = liger_tensor_contiguous(x, LIGER_F32, 2, matrix);
        args.weight = liger_tensor_contiguous(weight, LIGER_F32, 1, row);
        args.y = liger_tensor_contiguous(y, LIGER_F32, 2, matrix);
        args.rstd = liger_tensor_contiguous(rstd, LIGER_F32, 1, column);
        status = liger_rms_norm_forward(context, &args, NULL);
    }
    if (status != LIGER_OK) {
        fprintf(stderr, "%s: %s\n", liger_status_name(status), liger_last_error());
        liger_context_destroy(context);
        return 1;
    }
    printf("on %s:\n", liger_context_backend(context));
    for (int r = 0; r < 2; r++) printf("  %8.5f %8.5f %8.5f %8.5f\n", y[r][0], y[r][1], y[r][2], y[r][3]);
    liger_context_destroy(context);
    return 0;
}
