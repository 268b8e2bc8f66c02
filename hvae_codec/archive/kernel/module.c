/* Python's door to the coder: `encode` and `decode`, which let other threads run while they work. */

#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "numbers.h"

static int fits(const Py_buffer *numbers, const int32_t *shape, int bits) {
    int64_t count = 1;
    for (int i = 0; i < 4; i++) {
        if (shape[i] < 1 || count > INT32_MAX / shape[i]) return 0;
        count *= shape[i];
    }
    return numbers->len == count * 4 && (bits == 8 || bits == 16 || bits == 32);
}

/* Everything that coding writes to; NULL if there is no memory for it. */
static Chunk *new_chunk(const int32_t *shape, int bits, uint8_t **misses) {
    Chunk *chunk = calloc(1, sizeof(Chunk));
    *misses = calloc((size_t)shape[2] * (size_t)shape[3], 1);
    if (chunk == NULL || *misses == NULL) {
        free(chunk);
        free(*misses);
        return NULL;
    }
    start_chunk(chunk, bits);
    chunk->coder.high = 0xffffffff;
    return chunk;
}

static PyObject *encoded(const Py_buffer *numbers, const int32_t *shape, int bits) {
    uint8_t *misses;
    Chunk *chunk = new_chunk(shape, bits, &misses);
    if (chunk == NULL) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    code_numbers(chunk, numbers->buf, shape, misses);
    finish_encoder(&chunk->coder);
    Py_END_ALLOW_THREADS
    PyObject *bytes = chunk->coder.out_of_memory
        ? PyErr_NoMemory()
        : PyBytes_FromStringAndSize((const char *)chunk->coder.output, (Py_ssize_t)chunk->coder.position);
    free(chunk->coder.output);
    free(chunk);
    free(misses);
    return bytes;
}

static PyObject *decoded(const Py_buffer *bytes, const Py_buffer *numbers, const int32_t *shape, int bits) {
    uint8_t *misses;
    Chunk *chunk = new_chunk(shape, bits, &misses);
    if (chunk == NULL) return PyErr_NoMemory();
    chunk->coder.input = bytes->buf;
    chunk->coder.length = (size_t)bytes->len;
    Py_BEGIN_ALLOW_THREADS
    start_decoder(&chunk->coder);
    code_numbers(chunk, numbers->buf, shape, misses);
    Py_END_ALLOW_THREADS
    int whole = chunk->coder.position == chunk->coder.length && chunk->coder.missing == MISSING_AT_END;
    free(chunk);
    free(misses);
    return PyBool_FromLong(whole);
}

static PyObject *encode(PyObject *self, PyObject *arguments) {
    (void)self;
    Py_buffer numbers;
    int32_t shape[4];
    int bits;
    if (!PyArg_ParseTuple(arguments, "w*(iiii)i", &numbers, shape, shape + 1, shape + 2, shape + 3, &bits)) return NULL;
    PyObject *result = NULL;
    if (fits(&numbers, shape, bits)) result = encoded(&numbers, shape, bits);
    else PyErr_SetString(PyExc_ValueError, "the buffer is not int32 numbers of this shape");
    PyBuffer_Release(&numbers);
    return result;
}

static PyObject *decode(PyObject *self, PyObject *arguments) {
    (void)self;
    Py_buffer bytes, numbers;
    int32_t shape[4];
    int bits;
    if (!PyArg_ParseTuple(
            arguments, "y*w*(iiii)i", &bytes, &numbers, shape, shape + 1, shape + 2, shape + 3, &bits)) return NULL;
    PyObject *result = NULL;
    if (fits(&numbers, shape, bits)) result = decoded(&bytes, &numbers, shape, bits);
    else PyErr_SetString(PyExc_ValueError, "the buffer is not int32 numbers of this shape");
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&numbers);
    return result;
}

static PyMethodDef METHODS[] = {
    {"encode", encode, METH_VARARGS, "encode(numbers, shape, bits): bytes of int32 [planes, images, height, width]."},
    {"decode", decode, METH_VARARGS,
     "decode(data, numbers, shape, bits): fill int32 [planes, images, height, width]; whether `data` were its bytes."},
    {NULL, NULL, 0, NULL},
};

static int fill_tables(PyObject *module) {
    (void)module;
    fill_logits();
    return 0;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_tables}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_kernel", "The context-mixing coder of int32 numbers.", 0, METHODS, SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) {
    return PyModuleDef_Init(&MODULE);
}
