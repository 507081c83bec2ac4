//! Where each request of a connection ends, watched from outside the HTTP library and more strictly than it does. Pure.
//!
//! Request smuggling lives on two programs that disagree on where a request ends. hyper allows what RFC 9112 lets a
//! lenient server allow: a `Content-Length` beside a `Transfer-Encoding`, the same `Content-Length` twice, lines that
//! end in a bare LF. A proxy in front may have read them otherwise. So each byte that hyper is about to read passes
//! here first; what is refused is answered 400 by hyper and ends the connection (Law 11).
//!
//! Not for what hyper refuses by itself: characters, a version, the size and number of headers (431).

/// The longest line that is kept: enough for any value that matters here. Longer ones are looked at by their beginning.
const LINE: usize = 64;
/// The longest line that tells a chunk's size, with its extensions, and the longest trailer section, in bytes.
const CHUNK_LINE: usize = 1024;
const TRAILERS: usize = 8 * 1024;

/// What is wrong with a request's framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A line that does not end in CRLF, or a CR within one (RFC 9112, section 2.2).
    Line,
    /// A header that goes on in the next line (obs-fold, section 5.2).
    Fold,
    /// Both `Content-Length` and `Transfer-Encoding` (section 6.1).
    TwoLengths,
    /// A `Content-Length` that comes twice or is no number (section 6.3).
    ContentLength,
    /// A `Transfer-Encoding` that comes twice or is not `chunked` alone.
    TransferEncoding,
    /// More than one `Host` (section 3.2).
    Host,
    /// A chunk's size or end that is none, or trailers without end (section 7.1).
    Chunk,
}

/// Where a connection's bytes have come to.
#[derive(Debug)]
pub struct Framing {
    at: At,
    line: Line,
    head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first byte of a request.
    Between,
    /// In a request's head.
    Head,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// In the line that tells a chunk's size.
    ChunkSize,
    /// In a chunk, with so many bytes to come.
    Chunk(u64),
    /// In the CRLF behind a chunk.
    ChunkEnd(u8),
    /// In the lines behind the last chunk, so many bytes into them.
    Trailers(usize),
}

/// The line that is being read.
#[derive(Debug)]
struct Line {
    kept: [u8; LINE],
    /// Its length so far, without CR and LF.
    length: usize,
    carriage_return: bool,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    has_request_line: bool,
    content_length: Option<u64>,
    is_chunked: bool,
    hosts: u8,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            at: At::Between,
            line: Line {
                kept: [0; LINE],
                length: 0,
                carriage_return: false,
            },
            head: Head::default(),
        }
    }
}

impl Framing {
    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.at == At::Head
    }

    /// Reads on.
    ///
    /// # Errors
    /// What is wrong, and how many of the bytes come before that: nothing after them may be used.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), (usize, Violation)> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.at {
                At::Body(left) | At::Chunk(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    *left -= step as u64;
                    at += step;
                    match self.at {
                        At::Body(0) => self.at = At::Between,
                        At::Chunk(0) => self.at = At::ChunkEnd(0),
                        _ => {}
                    }
                }
                _ => {
                    self.byte(bytes[at]).map_err(|violation| (at, violation))?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> Result<(), Violation> {
        match self.at {
            At::Between => {
                // An empty line before a request is left out (section 2.2).
                if !matches!(byte, b'\r' | b'\n') {
                    self.at = At::Head;
                    self.head = Head::default();
                }
                self.line.ends(byte)?;
            }
            At::Head => {
                if self.line.ends(byte)? {
                    if self.line.length == 0 {
                        self.at = self.head.ends();
                    } else {
                        self.head.line(&self.line)?;
                    }
                    self.line.length = 0;
                }
            }
            At::ChunkSize => {
                if self.line.ends(byte)? {
                    self.at = match self.line.chunk_size()? {
                        0 => At::Trailers(0),
                        size => At::Chunk(size),
                    };
                    self.line.length = 0;
                } else if self.line.length > CHUNK_LINE {
                    return Err(Violation::Chunk);
                }
            }
            At::ChunkEnd(read) => {
                if byte != b"\r\n"[usize::from(read)] {
                    return Err(Violation::Chunk);
                }
                self.at = if read == 0 { At::ChunkEnd(1) } else { At::ChunkSize };
            }
            At::Trailers(read) => {
                if read >= TRAILERS {
                    return Err(Violation::Chunk);
                }
                self.at = At::Trailers(read + 1);
                if self.line.ends(byte)? {
                    if self.line.length == 0 {
                        self.at = At::Between;
                    }
                    self.line.length = 0;
                }
            }
            // Passed over as a whole by the caller.
            At::Body(_) | At::Chunk(_) => {}
        }
        Ok(())
    }
}

impl Line {
    /// Takes a byte; whether the line ends with it.
    fn ends(&mut self, byte: u8) -> Result<bool, Violation> {
        match (self.carriage_return, byte) {
            (true, b'\n') => {
                self.carriage_return = false;
                Ok(true)
            }
            (true, _) | (false, b'\n') => Err(Violation::Line),
            (false, b'\r') => {
                self.carriage_return = true;
                Ok(false)
            }
            (false, byte) => {
                if let Some(place) = self.kept.get_mut(self.length) {
                    *place = byte;
                }
                self.length += 1;
                Ok(false)
            }
        }
    }

    fn kept(&self) -> &[u8] {
        &self.kept[..self.length.min(LINE)]
    }

    /// The size that a chunk's line tells; what comes behind a semicolon does not matter.
    fn chunk_size(&self) -> Result<u64, Violation> {
        let digits = self.kept().split(|byte| *byte == b';').next().unwrap_or_default();
        let digits = digits.trim_ascii_end();
        // More could not be told from an overflow.
        if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Violation::Chunk);
        }
        std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or(Violation::Chunk)
    }
}

impl Head {
    /// Takes a whole line.
    fn line(&mut self, line: &Line) -> Result<(), Violation> {
        let kept = line.kept();
        if !self.has_request_line {
            self.has_request_line = true;
            return Ok(());
        }
        if matches!(kept.first(), Some(b' ' | b'\t')) {
            return Err(Violation::Fold);
        }
        let Some(colon) = kept.iter().position(|byte| *byte == b':') else {
            // A name that is longer than any that matters here, or none: hyper tells.
            return Ok(());
        };
        let (name, value) = (&kept[..colon], kept[colon + 1..].trim_ascii());
        // hyper refuses a name with a space behind it; it must not pass here as another name.
        let name = name.trim_ascii_end();
        let is_whole = line.length <= LINE;
        if name.eq_ignore_ascii_case(b"content-length") {
            let fine = is_whole && self.content_length.is_none() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse().ok())
                .filter(|_| fine)
                .ok_or(Violation::ContentLength)?;
            self.content_length = Some(number);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !is_whole || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::TransferEncoding);
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            self.hosts = self.hosts.saturating_add(1);
        }
        if self.is_chunked && self.content_length.is_some() {
            return Err(Violation::TwoLengths);
        }
        if self.hosts > 1 {
            return Err(Violation::Host);
        }
        Ok(())
    }

    /// The head is over: what comes behind it.
    fn ends(&self) -> At {
        match (self.is_chunked, self.content_length) {
            (true, _) => At::ChunkSize,
            (false, Some(length)) if length > 0 => At::Body(length),
            (false, _) => At::Between,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<(), (usize, Violation)> {
        Framing::default().read(bytes)
    }

    fn judged(head: &str) -> Option<Violation> {
        read(head.replace('\n', "\r\n").as_bytes())
            .err()
            .map(|(_, violation)| violation)
    }

    #[test]
    fn what_two_programs_could_read_differently_is_refused() {
        for (head, violation) in [
            (
                "content-length: 4\ntransfer-encoding: chunked\n\n",
                Violation::TwoLengths,
            ),
            (
                "Transfer-Encoding: chunked\nContent-Length: 4\n\n",
                Violation::TwoLengths,
            ),
            (
                "content-length: 4\ncontent-length: 4\n\n",
                Violation::ContentLength,
            ),
            ("content-length: 4, 4\n\n", Violation::ContentLength),
            ("content-length: +4\n\n", Violation::ContentLength),
            ("content-length:\n\n", Violation::ContentLength),
            (
                "content-length: 99999999999999999999999\n\n",
                Violation::ContentLength,
            ),
            (
                "transfer-encoding: gzip, chunked\n\n",
                Violation::TransferEncoding,
            ),
            (
                "transfer-encoding: chunked\ntransfer-encoding: chunked\n\n",
                Violation::TransferEncoding,
            ),
            ("transfer-encoding: xchunked\n\n", Violation::TransferEncoding),
            (
                "transfer-encoding : chunked\ncontent-length: 4\n\n",
                Violation::TwoLengths,
            ),
            ("x: 1\n folded: 2\n\n", Violation::Fold),
            ("x: 1\n\tfolded\n\n", Violation::Fold),
            ("host: a\nHOST: b\n\n", Violation::Host),
            ("transfer-encoding: chunked\n\nx\n", Violation::Chunk),
            ("transfer-encoding: chunked\n\n-1\n", Violation::Chunk),
            ("transfer-encoding: chunked\n\n0x1\n", Violation::Chunk),
            (
                "transfer-encoding: chunked\n\n1000000000000000\n",
                Violation::Chunk,
            ),
            ("transfer-encoding: chunked\n\n1\nab\n", Violation::Chunk),
        ] {
            assert_eq!(
                judged(&format!("POST / HTTP/1.1\n{head}")),
                Some(violation),
                "{head}"
            );
        }
        for bytes in [
            &b"GET / HTTP/1.1\n\n"[..],
            b"GET / HTTP/1.1\r\nhost: x\n\r\n",
            b"GET / HTTP/1.1\r\na: b\rc\r\n",
            b"\n",
        ] {
            assert!(
                matches!(read(bytes), Err((_, Violation::Line))),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn the_bytes_before_a_violation_are_told() {
        let bytes = b"POST / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n";
        assert_eq!(read(bytes), Err((bytes.len() - 3, Violation::Host)));
    }

    #[test]
    fn requests_end_where_they_say_and_the_next_begins_there() {
        let requests = concat!(
            "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n",
            "\r\nn\r\n",
            "\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n",
            "POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n",
            "3;ext=\"x\"\r\n\n\n\n\r\na\r\n0123456789\r\n000\r\ntrailer: 1\r\n\r\n",
            "GET /d HTTP/1.1\r\nhost: x\r\n",
        );
        let mut framing = Framing::default();
        framing.read(requests.as_bytes()).unwrap();
        assert!(framing.in_head(), "the last one has not ended");
        framing.read(b"\r\n").unwrap();
        assert!(!framing.in_head());
    }

    #[test]
    fn trailers_and_a_chunks_line_have_an_end() {
        let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let endless = format!("{head}0\r\n{}", "a: b\r\n".repeat(TRAILERS));
        assert!(matches!(read(endless.as_bytes()), Err((_, Violation::Chunk))));
        let endless = format!("{head}1;{}", "a".repeat(2 * CHUNK_LINE));
        assert!(matches!(read(endless.as_bytes()), Err((_, Violation::Chunk))));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_into_reads_changes_nothing(
            text in "(GET|POST) / HTTP/1.1\r\n(content-length: [0-9]{1,2}\r\n|transfer-encoding: chunked\r\n|x: y\r\n){0,3}\r\n[0-9a\r\n]{0,40}",
            cut in 1_usize..7,
        ) {
            let whole = read(text.as_bytes());
            let mut framing = Framing::default();
            let mut in_parts = Ok(());
            let mut before = 0;
            for part in text.as_bytes().chunks(cut) {
                if let Err((at, violation)) = framing.read(part) {
                    in_parts = Err((before + at, violation));
                    break;
                }
                before += part.len();
            }
            prop_assert_eq!(whole, in_parts);
        }

        #[test]
        fn no_bytes_are_too_much_for_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
