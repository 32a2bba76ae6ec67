/* torch_functions.h - what the binding keeps of torch: types, dtypes, and functions that are called directly. */
#ifndef LIGER_TORCH_FUNCTIONS_H
#define LIGER_TORCH_FUNCTIONS_H

#include "binding.h"

enum { DTYPES = 6 };

/* What a call can be asked to make: memory like the first argument's, contiguous; one f32 for each of its rows; memory
 * [batch, seq, heads, dim] seen as [batch, heads, seq, dim], like the first argument or like the second. */
enum wish { LIKE_FIRST, PER_ROW, HEADS_OF_FIRST, HEADS_OF_SECOND, WISHES };

typedef PyObject *(*keyword_function)(PyObject *, PyObject *, PyObject *);

struct torch_functions {
    PyObject *tensor_base, *tensor, *parameter;
    PyObject *dtypes[DTYPES]; /* index: liger_dtype - 1 */
    PyObject *argument_error, *library_error;
    PyObject *cuda_setup; /* called once, before the first CUDA call; answers the function that knows the stream */
    PyObject *cuda_stream;
    PyObject *empty;
    PyObject *name_data_ptr, *name_get_device, *name_stride, *name_dtype, *name_shape, *name_is_cuda;
    PyCFunction data_ptr, get_device;
    keyword_function stride;
    descrgetfunc get_dtype, get_shape, get_is_cuda;
    PyObject *dtype_getter, *shape_getter, *is_cuda_getter;
    PyObject *wishes[WISHES];
    PyObject *empty_like, *empty_strided;
    PyObject *contiguous, *as_f32; /* keywords: {"memory_format": ...}, {"dtype": ...} */
    PyObject *name_device;
    keyword_function new_empty;
    int direct; /* the functions above were found */
};

extern struct torch_functions torch; /* binding.c: registered by Python at start-up */

/* results.c: makes the tensor of a wish in the likeness of `like`, which is `given`. Its data is not looked up. */
PyObject *results_make(enum wish wish, PyObject *like, const liger_tensor *given, liger_tensor *tensor);
/* Asks the system for huge pages; a hint. */
void results_ask_huge(void *data, size_t bytes);

#endif
