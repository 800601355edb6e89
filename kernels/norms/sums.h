// Sums that are kept in memory, in the order of the lanes, which only the last store undoes.
#pragma once

#include <cstdlib>

#include "sweep.h"

inline void get(const float* from, Floats& v) { v = load(from, All{}); }
inline void get(const float* from, Pair& v) { v = {load(from, All{}), load(from + WIDTH / 2, All{})}; }
inline void set(float* to, Floats v) { store(to, v, All{}); }
inline void set(float* to, Pair v) {
    store(to, v.even, All{});
    store(to + WIDTH / 2, v.odd, All{});
}

// Memory that a thread keeps from call to call: fresh pages would cost as much as the sums that are written there.
struct Workspace {
    float* data = nullptr;
    int64_t size = 0;

    ~Workspace() { std::free(data); }
    float* of(int64_t floats) {
        if (floats > size) {
            std::free(data);
            data = static_cast<float*>(std::aligned_alloc(128, (floats + 31) / 32 * 32 * sizeof(float)));
            size = data ? floats : 0;
        }
        return data;
    }
};
