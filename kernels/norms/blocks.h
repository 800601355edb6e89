// How kernels go over rows: a block of rows is written while what the next one needs is gathered from it, so that
// arithmetic and memory work at the same time, and each row is read from memory once.
//
// A kernel brings `Rows`, its operands, with prefetch<LEVEL>(row, j); and a Flow of five types. Moments<COUNT> are sums
// over some columns of COUNT rows, in the parts that gather(rows, row, v, j, n) adds to; Sums of up to four rows are taken
// from them; Totals of a block are added up from these. Maps<COUNT> is what makes the outputs of a block, with
// find(rows, totals, row), and `hard`, not zero where any rows are. Lines<COUNT, SHIFTED> are that of some of its rows,
// with write<STREAM>(rows, row, j, n) and end(rows, row, begin, end). BESIDE is how many short rows are written together.
// ANYWHERE: single rows are streamed that begin anywhere in a line, what is written running ahead of what is gathered by
// their before_line(); so all lines but the first and the last are.
#pragma once

#include "statistics.h"

// The length of rows that go in stacks.
#ifndef COLS
#define COLS 0
#endif

// A row is summed span by span, and these sums in the order of the spans: threads that share a row get the same bits.
constexpr int64_t SPAN = 16384;
inline int64_t span_end(int64_t begin, int64_t cols) { return begin + SPAN < cols ? begin + SPAN : cols; }

// Sums over some columns of COUNT rows, gathered side by side.
template <typename Flow, int COUNT, typename Rows>
[[gnu::always_inline]] inline typename Flow::Sums sums_of(const Rows& rows, int64_t row, int64_t begin, int64_t end) {
    const Rows mine = rows;
    typename Flow::template Moments<COUNT> moments;
    sweep(begin, end, [&](auto v, int64_t j, auto n) INLINED { moments.gather(mine, row, v, j, n); });
    typename Flow::Sums sums;
    times<COUNT>([&](auto r) INLINED { sums.take(r, moments, r); });
    return sums;
}

// What the first COUNT rows of a range need; they go together as many at a time as registers hold.
template <typename Flow, int COUNT, typename Rows>
[[gnu::noinline]] typename Flow::template Maps<COUNT> first_maps(const Rows& rows, int64_t row) {
    constexpr int FEW = COUNT > 4 ? 4 : COUNT;
    typename Flow::template Totals<Numbers<COUNT>> totals;
    for (int64_t r = 0, cols = COUNT > 4 ? COLS : rows.plan.cols; r < COUNT; r += FEW) {
        typename Flow::template Totals<Quad> few;
        for (int64_t j = 0; j < cols; j += SPAN)
            few.template add<FEW>(sums_of<Flow, FEW>(rows, row + r, j, span_end(j, cols)));
        totals.append(few);
    }
    typename Flow::template Maps<COUNT> maps;
    maps.find(rows, totals, row);
    return maps;
}

template <bool STREAM, typename Lines, typename Rows>
[[gnu::noinline]] void write_lines(const Rows& rows, const Lines& lines, int64_t row, int64_t begin, int64_t end) {
    const Rows mine = rows;
    const Lines now = lines;
    int64_t from = begin;
    if constexpr (STREAM && Lines::ANYWHERE) {
        const int64_t head = mine.before_line(row * mine.plan.cols + begin);
        from = begin + head < end ? begin + head : end;
        if (from > begin) now.template write<false>(mine, row, begin, First{static_cast<int>(from - begin)});
    }
    sweep(from, end, [&](auto, int64_t j, auto n) INLINED { now.template write<STREAM>(mine, row, j, n); });
    lines.end(rows, row, begin, end);
}

// Whole blocks of up to four rows from `row` on; returns where they end.
template <bool STREAM, int PREFETCH, typename Flow, int COUNT, typename Rows>
[[gnu::always_inline]] inline int64_t blocks(const Rows& rows, int64_t row, int64_t end) {
    if (row + COUNT > end) return row;
    using Lines = typename Flow::template Lines<COUNT, true>;
    // Copies that nobody else has the address of: stores cannot change them, and they may stay in registers.
    const Rows mine = rows;
    const int64_t cols = mine.plan.cols;
    Lines lines(first_maps<Flow, COUNT>(rows, row), 0);
    constexpr bool ANYWHERE = STREAM && Lines::ANYWHERE;
    for (; row + 2 * COUNT <= end; row += COUNT) {
        const int64_t next = row + COUNT;
        int64_t head = 0;
        if constexpr (ANYWHERE) {
            head = mine.before_line(row * cols);
            if (head > cols) head = cols;
            if (head > 0) lines.template write<false>(mine, row, 0, First{static_cast<int>(head)});
            // What is streamed after an ordinary store waits until that has its line.
            mine.fetch_written(row * cols + cols - 1);
        }
        typename Flow::template Totals<Quad> totals;
        for (int64_t begin = 0; begin < cols; begin += SPAN) {
            typename Flow::template Moments<COUNT> moments;
            sweep(begin, span_end(begin, cols), [&](auto v, int64_t j, auto n) INLINED {
                times<COUNT>([&](auto r) INLINED { mine.template prefetch<PREFETCH>(next + COUNT + r, j); });
                const int64_t to = head + j;
                if constexpr (!ANYWHERE) lines.template write<STREAM>(mine, row, j, n);
                else if (to + WIDTH <= cols) lines.template write<STREAM>(mine, row, to, All{});
                else if (to < cols) lines.template write<false>(mine, row, to, First{static_cast<int>(cols - to)});
                moments.gather(mine, next, v, j, n);
            });
            typename Flow::Sums sums;
            times<COUNT>([&](auto r) INLINED { sums.take(r, moments, r); });
            totals.template add<COUNT>(sums);
        }
        lines.end(rows, row, 0, cols);
        typename Flow::template Maps<COUNT> maps;
        maps.find(rows, totals, next);
        lines = Lines(maps, 0);
    }
    const Lines last = lines;
    write_lines<STREAM>(rows, last, row, 0, cols);
    return row + COUNT;
}

// The same of stacks of short rows: what follows the sums of a row, and would take as long as a short row, is done for
// all rows of a stack at once. A few rows are gathered, then as many are written, so that the processor sees work of both
// kinds at any time. Their length is known when this is compiled: counting would take as long as adding. Rows of a
// stack that has none that is hard are not shifted.
template <bool STREAM, int PREFETCH, typename Flow, typename Rows>
[[gnu::always_inline]] inline int64_t stacks(const Rows& rows, int64_t row, int64_t end) {
    if (row + STACK > end || rows.plan.cols != COLS) return row;
    // Four rows beside each other share the loads of the weights, but beyond L2 two were 1.2 times as fast.
    constexpr int BESIDE = COLS * sizeof(T) <= 512 ? Flow::BESIDE : 2;
    using Lines = typename Flow::template Lines<BESIDE, false>;
    using Shifted = typename Flow::template Lines<BESIDE, true>;
    Rows mine = rows;  // As above: who is called below gets `rows`, or every store would make this be loaded again.
    mine.plan.cols = COLS;
    auto maps = first_maps<Flow, STACK>(rows, row);
    const auto write = [&](int64_t stack, int64_t at) INLINED {
        if (maps.hard) [[unlikely]] return write_lines<STREAM>(rows, Shifted(maps, at - stack), at, 0, COLS);
        const Lines lines(maps, at - stack);
        sweep(COLS, [&](auto, int64_t j, auto n) INLINED { lines.template write<STREAM>(mine, at, j, n); });
        lines.end(rows, at, 0, COLS);
    };
    for (; row + 2 * STACK <= end; row += STACK) {
        typename Flow::template Totals<Floats> totals;
        for (int64_t now = row; now < row + STACK; now += 4) {
            typename Flow::Sums sums;
            times<4>([&](auto r) INLINED {
                const int64_t next = now + STACK + r;
                typename Flow::template Moments<1> moments;
                sweep(COLS, [&](auto v, int64_t j, auto n) INLINED {
                    mine.template prefetch<PREFETCH>(next + STACK, j);
                    moments.gather(mine, next, v, j, n);
                });
                sums.take(r, moments, ZERO);
                if constexpr ((r + 1) % BESIDE != 0) return;
                write(row, r + 1 - BESIDE + now);
            });
            typename Flow::template Totals<Quad> four;
            four.template add<4>(sums);
            totals.append(four);
        }
        maps.find(rows, totals, row + STACK);
    }
    for (int64_t at = row; at < row + STACK; at += BESIDE) write(row, at);
    return row + STACK;
}

// The rows that are left; compiled once for all ways to store and to prefetch.
template <typename Flow, typename Rows>
[[gnu::noinline]] void single(const Rows& rows, int64_t row, int64_t end) {
    blocks<false, 0, Flow, 1>(rows, row, end);
}

template <bool STREAM, int PREFETCH, typename Flow, typename Rows>
void all_blocks(const Rows& rows, int64_t row, int64_t end) {
    if constexpr (ROWS > 4) row = stacks<STREAM, PREFETCH, Flow>(rows, row, end);
    else row = blocks<STREAM, PREFETCH, Flow, ROWS>(rows, row, end);
    single<Flow>(rows, row, end);
}
