//! Kernel's client: tokens, the webhook setting, sending messages. What is assumed about Kernel stands in
//! [`contract`]; what can go wrong, by what to do about it, in [`KernelError`].

mod client;
pub mod contract;
mod error;
mod token;
#[cfg(test)]
mod token_tests;
mod turnstile;

pub use self::{
    client::{Client, Failed, ReadBack},
    error::KernelError,
    token::{AccessToken, Credentials, TOKENS_KEPT, TokenRequest, Tokens, bytes_of_token},
    turnstile::{Operation, Turn, Turnstile},
};
