/* SPDX-License-Identifier: Apache-2.0 */
/* Loads a pruned network that Python has saved and runs it: main [FILE]. make_model.py made the file that is here. */
#include <gossamer/gossamer.h>
#include <stdio.h>
#include <stdlib.h>

static void check(gossamer_status status) {
  if (status == GOSSAMER_OK) return;
  fprintf(stderr, "%s\n", gossamer_last_error());
  exit(1);
}

static float* floats(int64_t count) {
  float* room = calloc((size_t)count + 1, sizeof(float));
  if (room == NULL) exit(1);
  return room;
}

/* A float32 array of the file, in memory of its own; the shape is the file's. */
static gossamer_array read_array(const gossamer_file* file, const char* name) {
  gossamer_entry entry;
  gossamer_array array = {0};
  int64_t size = 1, i;
  check(gossamer_file_find(file, name, &entry));
  for (i = 0; i < entry.ndim; ++i) size *= entry.shape[i];
  array.data = floats(size);
  array.dtype = GOSSAMER_FLOAT32, array.ndim = entry.ndim, array.shape = entry.shape;
  check(gossamer_file_read_array(file, name, &array));
  return array;
}

int main(int argc, char** argv) {
  gossamer_file* file = NULL;
  gossamer_array x, mean, factor, labels;
  int64_t batch, inputs, shapes[3][2], i, right = 0;
  check(gossamer_file_open(argc > 1 ? argv[1] : MODEL, &file));
  x = read_array(file, "samples");
  labels = read_array(file, "labels");
  mean = read_array(file, "input.mean");
  factor = read_array(file, "input.factor");
  batch = x.shape[0], inputs = x.shape[1];
  for (i = 0; i < batch * inputs; ++i) {
    float* pixel = (float*)x.data + i;
    *pixel = (*pixel - ((float*)mean.data)[i % inputs]) * ((float*)factor.data)[i % inputs];
  }
  for (int layer = 1; layer <= 3; ++layer) {
    char name[32];
    gossamer_matrix* weight = NULL;
    gossamer_matrix_info info;
    gossamer_array bias, y = {0};
    gossamer_epilogue after = {0};
    int64_t* shape = shapes[layer - 1];
    snprintf(name, sizeof name, "layer%d.weight", layer);
    check(gossamer_file_read_matrix(file, name, NULL, &weight));
    check(gossamer_matrix_get_info(weight, &info));
    snprintf(name, sizeof name, "layer%d.bias", layer);
    bias = read_array(file, name);
    printf("layer %d: %lld of %lld weights\n", layer, (long long)info.nnz, (long long)(info.rows * info.cols));
    after.bias = &bias;
    after.activation = layer < 3 ? GOSSAMER_RELU : GOSSAMER_IDENTITY;
    shape[0] = batch, shape[1] = info.rows;
    y.data = floats(batch * info.rows);
    y.dtype = GOSSAMER_FLOAT32, y.ndim = 2, y.shape = shape;
    check(gossamer_linear(weight, &x, &after, &y));
    gossamer_matrix_free(weight);
    free(bias.data), free(x.data);
    x = y, inputs = info.rows;
  }
  for (i = 0; i < batch; ++i) {
    const float* row = (float*)x.data + i * inputs;
    int64_t best = 0, c;
    for (c = 1; c < inputs; ++c) best = row[c] > row[best] ? c : best;
    right += best == (int64_t)((float*)labels.data)[i];
  }
  printf("%lld of %lld digits are right\n", (long long)right, (long long)batch);
  free(x.data), free(labels.data), free(mean.data), free(factor.data);
  gossamer_file_free(file);
  gossamer_shutdown();
  return right * 10 < batch * 9;
}
