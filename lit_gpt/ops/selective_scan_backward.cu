// The backward pass of selective_scan.cu, which stands before it.
//
// From the last tile to the first, and in each from the last token to the first: g = C dy + (a g of the token after).
// The states are computed again from the one before the tile, which forward kept: first up to each part of SUB tokens,
// then part by part, where a thread keeps those of all its tokens in registers on the way forth, for the way back.

constexpr int COPIES = 4;  // of B and C in shared memory, one for each turn of a lane
constexpr float LN2 = 0.6931471805599453f;

static_assert(TILE % SUB == 0, "a tile is whole parts");

struct BackwardMemory {
    float step[TILE * CHANNELS], added[TILE * CHANNELS], x[TILE * CHANNELS], dy[TILE * CHANNELS];
    float B[TILE * COPIES * N], C[TILE * COPIES * N];
    float by_added[TILE * CHANNELS + 16], by_decay[TILE * CHANNELS];  // dL/du; the sum of A g a h, over ln 2
    float parts[WARPS * TILE * 2 * N];                                 // dB and dC of a warp's channels
    float4 starts[TILE / SUB][2][THREADS];                             // the state before each part
    T raw_x[TILE * CHANNELS], raw_dt[TILE * CHANNELS], raw_dy[TILE * CHANNELS], raw_B[TILE * N], raw_C[TILE * N];
};
static_assert(sizeof(BackwardMemory) == BACKWARD_BYTES, "what the host asks for");

// What a thread reads of a token: d, u and dy of its channels, B and C of its states.
struct Token {
    float d[2], u[2], dy[2], b[4], c[4];
    __device__ __forceinline__ void steps(const BackwardMemory& m, const Lane& lane, int t) {
        const float2 d2 = *reinterpret_cast<const float2*>(m.step + t * CHANNELS + lane.channel);
        const float2 u2 = *reinterpret_cast<const float2*>(m.added + t * CHANNELS + lane.channel);
        d[0] = d2.x, d[1] = d2.y, u[0] = u2.x, u[1] = u2.y;
        quad(b, m.B, lane, t);
    }
    __device__ __forceinline__ void all(const BackwardMemory& m, const Lane& lane, int t) {
        steps(m, lane, t);
        const float2 dy2 = *reinterpret_cast<const float2*>(m.dy + t * CHANNELS + lane.channel);
        dy[0] = dy2.x, dy[1] = dy2.y;
        quad(c, m.C, lane, t);
    }
    __device__ static __forceinline__ void quad(float (&to)[4], const float* maps, const Lane& lane, int t) {
        const float4 v = *reinterpret_cast<const float4*>(maps + (t * COPIES + lane.turn) * N + 4 * lane.quarter);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
};

__device__ __forceinline__ void stage_backward(const Arguments& p, const Place& at, BackwardMemory& m, int tile) {
    stage_inputs(p, at, m, tile);
    const T* dy = at.at(p.dy, p.dy_row, p.dy_token, tile) + at.first;
    stage<CHANNELS>(m.raw_dy, dy, p.dy_token, p.length - tile * TILE, p.channels - at.first, p.aligned);
}

__device__ __forceinline__ float make_backward(
    const Arguments& p, const Place& at, BackwardMemory& m, int tile, float bias
) {
    make_maps<COPIES>(m.B, m.raw_B);
    make_maps<COPIES>(m.C, m.raw_C);
    for (int i = threadIdx.x; i < TILE * CHANNELS; i += THREADS) m.dy[i] = number(m.raw_dy[i]);
    return make_terms(p, at, m, tile, bias);
}

// The gradient of the state before the first token, as if that after the last had none; the sum of steps.
extern "C" __global__ void __launch_bounds__(THREADS) scan_carries(const Arguments p) {
    BackwardMemory& m = *reinterpret_cast<BackwardMemory*>(shared_memory);
    const Lane lane;
    const Place at(p);
    const int channel = at.first + lane.channel;
    const float bias = at.first + at.own < p.channels ? p.bias[at.first + at.own] : 0.0f;
    float A[2][4], carry[2][4] = {}, sum = 0.0f;
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 4; j++) {
            const int state = 4 * lane.quarter + (j ^ lane.turn);
            A[k][j] = channel + k < p.channels ? p.A[(channel + k) * N + state] * LOG2E : 0.0f;
        }
    stage_backward(p, at, m, at.tiles - 1);
    for (int tile = at.tiles - 1; tile >= 0; tile--) {
        copies_done();
        __syncthreads();
        sum += make_backward(p, at, m, tile, bias);
        __syncthreads();
        if (tile > 0) stage_backward(p, at, m, tile - 1);
#pragma unroll 4
        for (int t = TILE - 1; t >= 0; t--) {
            Token now;
            now.all(m, lane, t);
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    carry[k][j] = power_of_2(now.d[k] * A[k][j]) * (now.c[j] * now.dy[k] + carry[k][j]);
        }
    }
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 4; j++)
            if (channel + k < p.channels)
                p.dstate[at.state(p, channel + k, 4 * lane.quarter + (j ^ lane.turn))] = carry[k][j];
    sum_of_channel(m.step, p.total, at, p.channels, sum);
}

// The sum over a warp's channels of dB and dC of this thread's states, each already that of a pair, to `parts` (2, N).
__device__ __forceinline__ void sum_over_channels(
    float* parts, const Lane& lane, const float (&dB)[4], const float (&dC)[4]
) {
    const float b0 = dB[0] + exchange(dB[1], Lane::TURN_0), b2 = dB[2] + exchange(dB[3], Lane::TURN_0);
    const float c0 = dC[0] + exchange(dC[1], Lane::TURN_0), c2 = dC[2] + exchange(dC[3], Lane::TURN_0);
    const float b = b0 + exchange(b2, Lane::TURN_1), c = c0 + exchange(c2, Lane::TURN_1);
    const int state = 4 * lane.quarter + lane.turn;
    if (N == 32) {  // every lane has its own state
        parts[state] = b;
        parts[N + state] = c;
        return;
    }
    const bool second = lane.id & 1;  // bit 0 is the last of the channels: one lane keeps dB, the other dC
    float v = (second ? c : b) + exchange(second ? b : c, 1);
    if (N == 8) v += exchange(v, 4);
    if (N != 8 || !(lane.id & 4)) parts[(second ? N : 0) + state] = v;
}

// The sums over a pair's states of dL/du and of what the steps' gradient needs, for both channels.
__device__ __forceinline__ void sum_over_states(
    BackwardMemory& m, const Lane& lane, int t, const float (&du)[2], const float (&decay)[2]
) {
    const bool second = lane.quarter & 1, other = lane.quarter & 2;
    const float v0 = (second ? decay[0] : du[0]) + exchange(second ? du[0] : decay[0], 2);
    const float v1 = (second ? decay[1] : du[1]) + exchange(second ? du[1] : decay[1], 2);
    float* to = (second ? m.by_decay : m.by_added) + t * CHANNELS + lane.channel;
    if (LANES == 2) {
        to[0] = v0;
        to[1] = v1;
        return;
    }
    float v = (other ? v1 : v0) + exchange(other ? v0 : v1, 4);
    if (LANES == 8) v += exchange(v, 8);
    if (LANES == 4 || lane.quarter < 4) to[other ? 1 : 0] = v;
}

// 1 - exp(-d), the slope of softplus at its value d, without cancellation where d is small.
__device__ __forceinline__ float slope(float d) {
    return d > 0.0625f ? 1 - power_of_2(-d * LOG2E) : d * (1 - d * (1.0f / 2 - d * (1.0f / 6 - d * (1.0f / 24))));
}

// The gradients of x and dt of a tile from its sums, of a thread's channel; adds to those of D and the bias.
__device__ __forceinline__ void finish(
    const Arguments& p, const Place& at, const BackwardMemory& m, int tile, float bias, float skip, float& dD,
    float& dbias
) {
    const int own = at.first + at.own, tokens = own < p.channels ? p.length - tile * TILE : 0;
    const long long place = (at.row * p.length + (long long)tile * TILE) * p.channels + own;
    const T* dt = at.at(p.dt, p.dt_row, p.dt_token, tile) + own;
    T *dx = p.dx + place, *ddt = p.ddt + place;
    const auto write = [&](int t, float d) {  // returns x dy
        const int i = t * CHANNELS + at.own;
        const float x = m.x[i], dy = m.dy[i], du = m.by_added[i];
        const float by_dt = (x * du + LN2 * m.by_decay[i]) * slope(d);
        put(dx[t * p.channels], d * du + skip * dy);
        put(ddt[t * p.channels], by_dt);
        dbias += by_dt;
        return x * dy;
    };
#pragma unroll 4
    for (int t = at.own_token; t < TILE; t += TOKENS) {
        const float d = m.step[t * CHANNELS + at.own];
        if (t < tokens) dD += write(t, d == RESET ? 0.0f : d);  // then the slope is 0, too
    }
    if (!p.starts) return;
    for (int t = at.own_token; t < min(tokens, TILE); t += TOKENS)  // again with the step that RESET hid
        if (m.step[t * CHANNELS + at.own] == RESET) write(t, softplus(number(dt[t * p.dt_token]) + bias));
}

extern "C" __global__ void __launch_bounds__(THREADS) scan_backward(const Arguments p) {
    BackwardMemory& m = *reinterpret_cast<BackwardMemory*>(shared_memory);
    const Lane lane;
    const Place at(p);
    const int channel = at.first + lane.channel, own = at.first + at.own;
    const float bias = own < p.channels ? p.bias[own] : 0.0f, skip = own < p.channels ? p.D[own] : 0.0f;
    float A[2][4], dA[2][4] = {}, carry[2][4], dD = 0.0f, dbias = 0.0f;  // carry: a g of the token after
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 4; j++) {
            const int state = 4 * lane.quarter + (j ^ lane.turn);
            const bool inside = channel + k < p.channels;
            A[k][j] = inside ? p.A[(channel + k) * N + state] * LOG2E : 0.0f;
            carry[k][j] = inside && p.dlast ? p.dlast[at.state(p, channel + k, state)] : 0.0f;
        }
    stage_backward(p, at, m, at.tiles - 1);
    for (int tile = at.tiles - 1; tile >= 0; tile--) {
        float h[2][4];
        for (int k = 0; k < 2; k++)
            for (int j = 0; j < 4; j++) {
                const long long place = ((at.row * at.tiles + tile) * p.channels + channel + k) * N;
                h[k][j] = channel + k < p.channels ? p.saved[place + 4 * lane.quarter + (j ^ lane.turn)] : 0.0f;
            }
        copies_done();
        __syncthreads();
        make_backward(p, at, m, tile, bias);
        __syncthreads();
        if (tile > 0) stage_backward(p, at, m, tile - 1);

        for (int part = 0; part < TILE / SUB; part++) {  // the state before each part
            for (int k = 0; k < 2; k++)
                m.starts[part][k][threadIdx.x] = make_float4(h[k][0], h[k][1], h[k][2], h[k][3]);
            if (part + 1 < TILE / SUB)
#pragma unroll 4
                for (int t = part * SUB; t < (part + 1) * SUB; t++) {
                    Token now;
                    now.steps(m, lane, t);
#pragma unroll
                    for (int k = 0; k < 2; k++)
#pragma unroll
                        for (int j = 0; j < 4; j++)
                            h[k][j] = power_of_2(now.d[k] * A[k][j]) * h[k][j] + now.u[k] * now.b[j];
                }
        }
        for (int part = TILE / SUB - 1; part >= 0; part--) {
            float a[SUB][2][4], states[SUB + 1][2][4];  // states: that before the part, and those after its tokens
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const float4 v = m.starts[part][k][threadIdx.x];
                states[0][k][0] = v.x, states[0][k][1] = v.y, states[0][k][2] = v.z, states[0][k][3] = v.w;
            }
#pragma unroll
            for (int i = 0; i < SUB; i++) {
                Token now;
                now.steps(m, lane, part * SUB + i);
#pragma unroll
                for (int k = 0; k < 2; k++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        a[i][k][j] = power_of_2(now.d[k] * A[k][j]);
                        states[i + 1][k][j] = a[i][k][j] * states[i][k][j] + now.u[k] * now.b[j];
                    }
            }
            Token now, before;
            before.all(m, lane, part * SUB + SUB - 1);
#pragma unroll
            for (int i = SUB - 1; i >= 0; i--) {
                const int t = part * SUB + i;
                now = before;
                if (i > 0) before.all(m, lane, t - 1);  // read before this token's sums are written
                float dB[4] = {}, dC[4] = {}, du[2] = {}, decay[2] = {};
#pragma unroll
                for (int k = 0; k < 2; k++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const float g = now.c[j] * now.dy[k] + carry[k][j];
                        carry[k][j] = a[i][k][j] * g;
                        const float by_decay = carry[k][j] * states[i][k][j];  // dL/d(d A)
                        du[k] += g * now.b[j];
                        dB[j] += g * now.u[k];
                        dC[j] += states[i + 1][k][j] * now.dy[k];
                        dA[k][j] += now.d[k] * by_decay;
                        decay[k] += A[k][j] * by_decay;
                    }
                sum_over_states(m, lane, t, du, decay);
                sum_over_channels(m.parts + (threadIdx.x / 32 * TILE + t) * 2 * N, lane, dB, dC);
            }
        }
        __syncthreads();
        finish(p, at, m, tile, bias, skip, dD, dbias);
        const long long rows = gridDim.y, place = (blockIdx.x * rows + at.row) * p.length + (long long)tile * TILE;
        const int tokens = min(TILE, p.length - tile * TILE);
        for (int i = threadIdx.x; i < tokens * 2 * N; i += THREADS) {
            float sum = m.parts[i];
            for (int warp = 1; warp < WARPS; warp++) sum += m.parts[warp * TILE * 2 * N + i];
            p.dBC[place * 2 * N + i] = sum;
        }
    }
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 4; j++)
            if (channel + k < p.channels) {
                const long long place = at.state(p, channel + k, 4 * lane.quarter + (j ^ lane.turn));
                p.dA[place] = dA[k][j];
                p.dstate[place] = carry[k][j];
            }
    sum_of_channel(m.step, p.dD, at, p.channels, dD);
    sum_of_channel(m.step, p.dbias, at, p.channels, dbias);
}
