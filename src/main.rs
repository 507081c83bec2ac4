fn main(){ print!("{}", aura_whatsapp_operator::api::crd::yaml().unwrap()); }
