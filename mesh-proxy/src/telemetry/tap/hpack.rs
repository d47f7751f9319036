//! Headers of HTTP/2 as they go by (HPACK, RFC 7541): decoded, and where each value stands, so that some can be changed
//! in place.

mod fixed;
mod huffman;

use std::{collections::VecDeque, mem};

use fixed::FIELDS;
pub(super) use huffman::alike;

/// Largest table that an encoder may ask for.
const MOST_TABLE: usize = 64 << 10;
/// Most bytes of names and values of one head.
const MOST_HEAD: usize = 256 << 10;
/// What an entry costs beside its text, as the standard counts.
const OVERHEAD: usize = 32;

/// Name and value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// What one side's encoder has said so far.
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// A header.
pub(super) struct Field<'f> {
    pub(super) name: &'f [u8],
    pub(super) value: &'f [u8],
    /// Where its value stands; none = only its number does.
    pub(super) literal: Option<Literal>,
}

/// A text in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Literal {
    pub(super) at: usize,
    pub(super) length: usize,
    pub(super) huffman: bool,
}

impl Literal {
    /// The bytes of another text in its place; none if they are more or fewer.
    pub(super) fn instead(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.length);
        if self.huffman {
            huffman::encode(text, &mut bytes);
        } else {
            bytes.extend_from_slice(text);
        }
        (bytes.len() == self.length).then_some(bytes)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, most: 4096, name: Vec::new(), value: Vec::new() }
    }
}

impl Decoder {
    /// Reads a whole head; none if it cannot be read, and then nothing that comes after it can.
    pub(super) fn decode(&mut self, head: &[u8], mut each: impl FnMut(&Field<'_>)) -> Option<()> {
        let (mut at, mut total) = (0, 0);
        while let Some(first) = head.get(at).copied() {
            if first & 0x80 != 0 {
                let index = integer(head, &mut at, 7)?;
                let (name, value) = self.entry(index)?;
                total += name.len() + value.len();
                each(&Field { name, value, literal: None });
            } else if first & 0xe0 == 0x20 {
                self.most = integer(head, &mut at, 5).filter(|most| *most <= MOST_TABLE)?;
                self.evict(0);
            } else {
                let kept = first & 0xc0 == 0x40;
                let index = integer(head, &mut at, if kept { 6 } else { 4 })?;
                let (mut name, mut value) = (mem::take(&mut self.name), mem::take(&mut self.value));
                name.clear();
                value.clear();
                if index == 0 {
                    text(head, &mut at, &mut name)?;
                } else {
                    name.extend_from_slice(self.entry(index)?.0);
                }
                let literal = Some(text(head, &mut at, &mut value)?);
                total += name.len() + value.len();
                each(&Field { name: &name, value: &value, literal });
                if kept {
                    self.insert(&name, &value);
                }
                (self.name, self.value) = (name, value);
            }
            if total > MOST_HEAD {
                return None;
            }
        }
        Some(())
    }

    fn entry(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        match FIELDS.get(index) {
            Some((name, value)) => Some((name.as_bytes(), value.as_bytes())),
            None => self.entries.get(index - FIELDS.len()).map(|(name, value)| (&**name, &**value)),
        }
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(size);
        // One that is larger than the table empties it.
        if size <= self.most {
            self.size += size;
            self.entries.push_front((name.into(), value.into()));
        }
    }

    /// Makes room for so many bytes.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.most {
            let Some((name, value)) = self.entries.pop_back() else { return };
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// A number whose first bits are the last of this byte.
fn integer(head: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*head.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*head.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends a text; says where it stands.
fn text(head: &[u8], at: &mut usize, out: &mut Vec<u8>) -> Option<Literal> {
    let huffman = *head.get(*at)? & 0x80 != 0;
    let length = integer(head, at, 7)?;
    let literal = Literal { at: *at, length, huffman };
    let bytes = head.get(*at..at.checked_add(length)?)?;
    *at += length;
    if huffman {
        huffman::decode(bytes, out)?;
    } else {
        out.extend_from_slice(bytes);
    }
    Some(literal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        let digits = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    }

    fn read(decoder: &mut Decoder, head: &[u8]) -> Option<String> {
        let mut out = String::new();
        let line = |f: &Field<'_>| {
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            out += &format!("{}: {}\n", text(f.name), text(f.value));
        };
        decoder.decode(head, line)?;
        Some(out)
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // Appendix C.4: requests, with Huffman code.
        let mut decoder = Decoder::default();
        let first = read(&mut decoder, &hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")).unwrap();
        assert_eq!(first, ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n");
        let second = read(&mut decoder, &hex("8286 84be 5886 a8eb 1064 9cbf")).unwrap();
        assert_eq!(second, format!("{first}cache-control: no-cache\n"));
        let third = "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf";
        let third = read(&mut decoder, &hex(third)).unwrap();
        assert!(third.ends_with(":authority: www.example.com\ncustom-key: custom-value\n"), "{third}");
        assert_eq!((decoder.entries.len(), decoder.size), (3, 164));

        // Appendix C.5: responses, without; the table has 256 bytes, and entries give way.
        let mut decoder = Decoder { most: 256, ..Decoder::default() };
        let first = "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 \
                     2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 \
                     6c65 2e63 6f6d";
        let first = read(&mut decoder, &hex(first)).unwrap();
        assert!(first.starts_with(":status: 302\n") && first.ends_with("https://www.example.com\n"));
        let second = read(&mut decoder, &hex("4803 3330 37c1 c0bf")).unwrap();
        assert_eq!(second, first.replace("302", "307"));
        assert_eq!((decoder.entries.len(), decoder.size), (4, 222), "the oldest gave way");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in ["80", "be", "40", "4082", "408202", "0f", "3fe1ffff7f", "ffffffffffff", "4181ff00"] {
            assert!(read(&mut Decoder::default(), &hex(wrong)).is_none(), "{wrong}");
        }
        // A head that repeats a large field again and again.
        let mut bomb = hex("4001 787f a11e");
        bomb.extend([b'x'; 4000]);
        let mut decoder = Decoder::default();
        assert!(read(&mut decoder, &bomb).is_some());
        assert!(read(&mut decoder, &[0xbe; 1000]).is_none());
    }

    #[test]
    fn a_value_is_replaced_where_it_stands() {
        let plain = Literal { at: 0, length: 4, huffman: false };
        assert_eq!(plain.instead(b"abcd").unwrap(), b"abcd");
        assert!(plain.instead(b"abc").is_none());
        let mut coded = Vec::new();
        huffman::encode(b"00-0123456789abcdef", &mut coded);
        let coded = Literal { at: 0, length: coded.len(), huffman: true };
        assert!(coded.instead(b"00-cea7654389012dfb").is_some_and(|b| b.len() == coded.length));
        assert!(coded.instead(b"00-xxxxxxxxxxxxxxxx").is_none());
    }
}
