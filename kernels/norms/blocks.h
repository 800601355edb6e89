// How kernels go over rows: a block of COUNT rows is written while what the next one needs is gathered from it, so that
// arithmetic and memory work at the same time, and each row is read from memory once.
//
// A kernel brings `Rows`, its operands, with prefetch<LEVEL>(row, j); and Lines<COUNT>, what makes the outputs of a block,
// with find(rows, totals, row), write<STREAM>(rows, row, j, n) and end(rows, row, begin, end). Lines<COUNT>::Totals are sums
// over a block, added up from those over some columns, Lines<COUNT>::Moments with gather(rows, row, v, j, n).
#pragma once

#include "sweep.h"

// A row is summed span by span, and these sums in the order of the spans: threads that share a row get the same bits.
constexpr int64_t SPAN = 16384;

template <typename Lines, typename Rows>
[[gnu::always_inline]] inline void add_span(typename Lines::Totals& totals, const Rows& rows, int64_t row, int64_t begin,
                                            int64_t end) {
    const Rows mine = rows;
    typename Lines::Moments moments;
    sweep(begin, end, [&](auto v, int64_t j, auto n) { moments.gather(mine, row, v, j, n); });
    totals.add(moments);
}

inline int64_t span_end(int64_t begin, int64_t cols) { return begin + SPAN < cols ? begin + SPAN : cols; }

template <typename Lines, typename Rows>
[[gnu::noinline]] Lines first_lines(const Rows& rows, int64_t row) {
    typename Lines::Totals totals;
    for (int64_t j = 0, cols = rows.plan.cols; j < cols; j += SPAN) add_span<Lines>(totals, rows, row, j, span_end(j, cols));
    Lines lines;
    lines.find(rows, totals, row);
    return lines;
}

template <bool STREAM, typename Lines, typename Rows>
[[gnu::noinline]] void write_lines(const Rows& rows, const Lines& lines, int64_t row, int64_t begin, int64_t end) {
    const Rows mine = rows;
    const Lines now = lines;
    sweep(begin, end, [&](auto, int64_t j, auto n) { now.template write<STREAM>(mine, row, j, n); });
    lines.end(rows, row, begin, end);
}

// Whole blocks from `row` on; returns where they end.
template <bool STREAM, int PREFETCH, template <int> class Lines, int COUNT, typename Rows>
[[gnu::always_inline]] inline int64_t blocks(const Rows& rows, int64_t row, int64_t end) {
    if (row + COUNT > end) return row;
    // Copies that nobody else has the address of: stores cannot change them, and they may stay in registers.
    const Rows mine = rows;
    const int64_t cols = mine.plan.cols;
    const Lines<COUNT> first = first_lines<Lines<COUNT>>(rows, row);
    Lines<COUNT> lines = first;
    for (; row + 2 * COUNT <= end; row += COUNT) {
        const int64_t next = row + COUNT;
        typename Lines<COUNT>::Totals totals;
        for (int64_t begin = 0; begin < cols; begin += SPAN) {
            typename Lines<COUNT>::Moments moments;
            sweep(begin, span_end(begin, cols), [&](auto v, int64_t j, auto n) {
                times<COUNT>([&](auto r) { mine.template prefetch<PREFETCH>(next + COUNT + r, j); });
                lines.template write<STREAM>(mine, row, j, n);
                moments.gather(mine, next, v, j, n);
            });
            totals.add(moments);
        }
        lines.end(rows, row, 0, cols);
        lines.find(rows, totals, next);
    }
    const Lines<COUNT> last = lines;
    write_lines<STREAM>(rows, last, row, 0, cols);
    return row + COUNT;
}

// The rows that are left; compiled once for all ways to store and to prefetch.
template <template <int> class Lines, typename Rows>
[[gnu::noinline]] void single(const Rows& rows, int64_t row, int64_t end) {
    blocks<false, 0, Lines, 1>(rows, row, end);
}

template <bool STREAM, int PREFETCH, template <int> class Lines, typename Rows>
void all_blocks(const Rows& rows, int64_t row, int64_t end) {
    single<Lines>(rows, blocks<STREAM, PREFETCH, Lines, ROWS>(rows, row, end), end);
}
