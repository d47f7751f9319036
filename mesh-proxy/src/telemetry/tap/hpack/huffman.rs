//! The Huffman code of HPACK (RFC 7541, appendix B). It is canonical: the lengths of its codes say all of it.

/// The end of a text, which no text may contain.
const END: usize = 256;
/// Bits of each byte's code, then of the end's.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const LONGEST: usize = 30;
const SHORTEST: usize = 5;
const ORDER: Order = Order::new();

/// The symbols by the length of their codes; codes of one length follow each other.
struct Order {
    symbols: [u16; 257],
    /// Of each length: where its symbols begin, and their first code.
    start: [usize; LONGEST + 2],
    first: [u32; LONGEST + 1],
}

impl Order {
    const fn new() -> Self {
        let mut order = Self { symbols: [0; 257], start: [0; LONGEST + 2], first: [0; LONGEST + 1] };
        let (mut place, mut code, mut length) = (0, 0, 1);
        while length <= LONGEST {
            code <<= 1;
            order.start[length] = place;
            order.first[length] = code;
            let mut symbol = 0;
            while symbol < LENGTHS.len() {
                if LENGTHS[symbol] as usize == length {
                    order.symbols[place] = symbol as u16;
                    place += 1;
                    code += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        order.start[LONGEST + 1] = place;
        order
    }
}

/// Appends what a code says; none if it is no code.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut window, mut bits) = (0_u64, 0_usize);
    for byte in code {
        window = (window << 8) | u64::from(*byte);
        bits += 8;
        while let Some((symbol, length)) = next(window, bits) {
            out.push(u8::try_from(symbol).ok()?);
            bits -= length;
            window &= (1 << bits) - 1;
        }
    }
    // What is left is the beginning of the end's code.
    (bits < 8 && window == (1 << bits) - 1).then_some(())
}

/// The symbol at the front of so many bits, if it is whole.
fn next(window: u64, bits: usize) -> Option<(u16, usize)> {
    (SHORTEST..=bits.min(LONGEST)).find_map(|length| {
        let code = u32::try_from(window >> (bits - length)).ok()?;
        let place = ORDER.start[length] + code.checked_sub(ORDER.first[length])? as usize;
        (place < ORDER.start[length + 1]).then(|| (ORDER.symbols[place], length))
    })
}

/// Appends the code of a text.
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut window, mut bits) = (0_u64, 0_usize);
    let mut put = |symbol: usize, most: usize, out: &mut Vec<u8>| {
        let length = usize::from(LENGTHS[symbol]);
        let range = ORDER.start[length]..ORDER.start[length + 1];
        let place = ORDER.symbols[range].iter().position(|s| usize::from(*s) == symbol).unwrap_or_default();
        let code = ORDER.first[length] + u32::try_from(place).unwrap_or_default();
        let taken = length.min(most);
        window = (window << taken) | u64::from(code >> (length - taken));
        bits += taken;
        while bits >= 8 {
            bits -= 8;
            out.push(((window >> bits) & 0xff) as u8);
        }
        bits
    };
    let mut over = 0;
    for byte in text {
        over = put(usize::from(*byte), LONGEST, out);
    }
    if over > 0 {
        put(END, 8 - over, out);
    }
}

/// Whether two bytes have codes of one length: one can stand where the other does.
pub(in crate::telemetry::tap) fn alike(a: u8, b: u8) -> bool {
    LENGTHS[usize::from(a)] == LENGTHS[usize::from(b)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    }

    #[test]
    fn it_is_the_code_of_the_standard() {
        // RFC 7541, appendix C.
        for (text, code) in [
            ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
            ("no-cache", "a8eb10649cbf"),
            ("custom-value", "25a849e95bb8e8b4bf"),
            ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
            (
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ),
        ] {
            let (mut plain, mut coded) = (Vec::new(), Vec::new());
            decode(&hex(code), &mut plain).unwrap();
            encode(text.as_bytes(), &mut coded);
            assert_eq!((plain.as_slice(), coded), (text.as_bytes(), hex(code)));
        }
    }

    #[test]
    fn every_byte_comes_back_and_what_is_no_code_is_refused() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        let (mut coded, mut back) = (Vec::new(), Vec::new());
        encode(&all, &mut coded);
        decode(&coded, &mut back).unwrap();
        assert_eq!(back, all);
        // The end in a text, eight bits of padding, padding that is not of ones.
        for wrong in [hex("ffffffff"), hex("1fff"), hex("18")] {
            assert!(decode(&wrong, &mut Vec::new()).is_none(), "{wrong:x?}");
        }
        assert!(alike(b'0', b'e') && alike(b'3', b'f') && !alike(b'2', b'3'));
    }
}
