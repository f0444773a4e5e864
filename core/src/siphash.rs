//! SipHash-2-4: a keyed hash of which no result tells another, nor the key.
//! Source: J.-P. Aumasson and D. J. Bernstein, SipHash: a fast short-input PRF (2012).

use trefoil_proto::internal::v1::Drawn;

/// 64 bits of some numbers, for those who know the key.
#[must_use]
pub fn siphash(key: &Drawn, numbers: &[u64]) -> u64 {
    let mut state = [
        key.high ^ 0x736f_6d65_7073_6575,
        key.low ^ 0x646f_7261_6e64_6f6d,
        key.high ^ 0x6c79_6765_6e65_7261,
        key.low ^ 0x7465_6462_7974_6573,
    ];
    // The last word holds how many bytes there were, as if the numbers were written in little endian.
    let length = (numbers.len() as u64 * 8) << 56;
    for word in numbers.iter().chain([&length]) {
        state[3] ^= word;
        (0..2).for_each(|_| round(&mut state));
        state[0] ^= word;
    }
    state[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn round(state: &mut [u64; 4]) {
    let [v0, v1, v2, v3] = state;
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_siphash_of_its_authors() {
        let key = Drawn { high: 0x0706_0504_0302_0100, low: 0x0f0e_0d0c_0b0a_0908 };
        // From the vectors of their reference implementation: the bytes 0, 1, 2 and so on, 0, 8 and 16 of them.
        let numbers = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash(&key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(&key, &numbers[..1]), 0x93f5_f579_9a93_2462);
        assert_eq!(siphash(&key, &numbers), 0x3f2a_cc7f_57c2_9bdb);
    }
}
